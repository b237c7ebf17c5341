"""DUS as a filter (arXiv 2506.19037, 4.4): of what a rule accepts, tokens that stand apart."""

import torch
from torch import Tensor

from kernels import Scores
from strategies import Rule, Strategy, Sure, Window, named, rank, require
from strategies.eb import entropy_bound
from strategies.fast_dllm import CacheSetting, cached, threshold_rule
from strategies.llada import ORDERS, serial


def apart(rule: Rule, stride: int) -> Rule:
    """Of what a rule accepts, the surest first, each that is far enough from all taken before it:
    stride cells while the block is empty, fewer as it fills, but 2 at least."""

    def filtered(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        accepted, length = rule(scores, candidates, window) & candidates, candidates.shape[-1]
        gap = (candidates.sum(-1, keepdim=True) * stride // length).clamp(min=2)  # [N, 1]
        cells, kept = torch.arange(length, device=gap.device), torch.zeros_like(accepted)
        for cell in rank(scores.doubt, candidates).argsort(-1).split(1, -1):  # [N, 1] each
            near = (kept & ((cells - cell).abs() < gap)).any(-1, keepdim=True)
            kept.scatter_(-1, cell, accepted.gather(-1, cell) & ~near)
        return kept

    return filtered if stride else rule


@named("spaced", either=("threshold", "gamma"))
def spaced(
    threshold: Sure | None = 0.5,
    gamma: float | None = None,
    stride: int = 8,
    cache: CacheSetting = "none",
) -> Strategy:
    """DUS as a filter (arXiv 2506.19037): of what a threshold, or EB-Sampler, accepts, only tokens
    that stand apart.

    threshold: tau; commit tokens at least this confident
    gamma: replaces the threshold: EB-Sampler's bound, in nats
    stride: g0; how far apart tokens stand that are written while the block is empty; 0 is no filter
    """
    one = threshold is not None or gamma is not None
    require(one, "threshold", threshold, "a number, unless gamma is given")
    rule = threshold_rule(threshold) if gamma is None else entropy_bound(gamma)
    order = None if gamma is None else ORDERS["entropy"]
    return Strategy(apart(rule, stride), cached(cache), serial, order=order)
