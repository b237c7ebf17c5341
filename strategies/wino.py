"""WINO (arXiv 2507.18578): much is written, and what was is looked at again in its absence."""

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import MASKED, Share, Strategy, Sure, Window, named, rank
from strategies.llada import one_block, serial


def shadowed(s, window: Window) -> Pass:
    """The canvas, and shadows of the block: masks in its places that see each other and all but the
    token in their own place. Nothing else sees them."""
    S, slots = s.x.shape[1], torch.arange(s.x.shape[1], device=s.x.device)
    query = torch.cat((slots, slots[window.start : window.end]))
    shadow = torch.arange(len(query), device=query.device) >= S
    mask = torch.where(shadow, shadow[:, None], ~shadow[:, None] | (query != query[:, None]))
    rows = torch.cat((query[S:], S + slots[: len(query) - S]))  # the block's, and its shadows'
    return Pass(query, mask=mask, rows=rows, hidden=shadow)


class Shadows:
    """Logits as they are; and the probability of each written token in the eyes of its shadow."""

    def __call__(self, s, window: Window, at: Pass) -> Tensor:
        logits, shadow = s.forward(window, at).chunk(2, 1)  # [b, L, V] each
        s.forbid(shadow)
        token = s.x[window.live, window.start : window.end, None]
        self.kept = shadow.float().softmax(-1).gather(-1, token)[..., 0]  # [b, L]
        return logits


class Wino:
    """Commit what is surer than the threshold: 7 of 10 masks at most, or 5, or 20. If that are some,
    take back what its shadow thinks unlikely, always less than was committed the forward before."""

    revises = True

    def __init__(self, threshold: float, threshold_back: float, inside: Shadows):
        self.threshold, self.back, self.inside = threshold, threshold_back, inside

    def check(self, strategy: Strategy) -> None:
        one_block(strategy, "a rule that remembers a block's tokens")

    def __call__(self, scores: Scores, candidates: Tensor, window: Window):
        live, place, kept = window.live, rank(scores.doubt, candidates), self.inside.kept
        if window.age == 0:
            self.last = torch.full((window.batch, 1), 30, device=live.device)
        most = (candidates.sum(-1, keepdim=True) * 0.7).int().clamp(5, 20)  # [N, 1]
        sure = (scores.confidence > self.threshold) & (place < most)
        commit, written = candidates & (sure | (place == 0)), window.own & ~candidates
        count, last = commit.sum(-1, keepdim=True), self.last[live]
        drop = written & (kept < self.back) & (count > 1)
        drop &= (drop.sum(-1, keepdim=True) < last) | (rank(kept, written) < last - 1)
        self.last[live] = count
        return commit | drop, torch.where(drop, MASKED, scores.token)


@named("wino")
def wino(threshold: Sure = 0.6, threshold_back: Share = 0.9) -> Strategy:
    """WINO (arXiv 2507.18578): bold commits, and tokens are taken back that the model, shown all
    but them, would not write again.

    threshold: tau1; commit tokens more confident than this
    threshold_back: tau2; take back tokens that are less likely than this without themselves
    """
    rule = Wino(threshold, threshold_back, shadows := Shadows())
    return Strategy(rule, shadowed, serial, forward=shadows, block_length=None)
