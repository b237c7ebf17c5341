"""Prophet (arXiv 2508.19982): all that is left at once, when the model knows the answer."""

from dataclasses import replace

import torch
from torch import Tensor

from kernels import Scores
from strategies import Count, Rule, Strategy, Window, choose, has, named, require
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import quota, serial


def within(inner: int) -> Rule:
    """LLaDA's quota of inner blocks of so many cells, one after the other."""

    def fits(s) -> None:
        length, steps = s.settings.gen_length, s.settings.steps or s.settings.gen_length
        whole = f"{length}, which is gen_length: the shorter blocks of prophet are `inner`"
        require(s.blocks == 1, "block_length", s.block_length, whole)
        require(length % inner == 0, "inner", inner, f"a divisor of gen_length {length}")
        require(steps % (length // inner) == 0, "steps", steps, f"a multiple of {length // inner}")

    @has(quota=True, check=quota.check, fits=fits)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        number = torch.arange(candidates.shape[-1], device=candidates.device) // inner
        first = number.where(candidates, len(number)).amin(-1, keepdim=True)  # with a mask
        steps = (window.age + window.remaining) * inner // len(number)
        here = replace(window, remaining=steps - window.age % steps)
        return quota(scores, candidates & (number == first), here)

    return rule


@named("prophet")
def prophet(
    early: float = 7.5,
    mid: float = 5.0,
    late: float = 2.5,
    answer_start: int | None = None,
    answer_length: Count = 5,
    inner: Count = 32,
    cache: CacheSetting = "none",
) -> Strategy:
    """Prophet (arXiv 2508.19982): LLaDA, until the model prefers its first choice for the cells of
    the answer by so much that all the rest is written at once.

    early: the mean gap between best and second logit that is enough in the first third of `steps`
    mid: ... in the second third
    late: ... in the last
    answer_start: the cell at which the answer to look at begins, from 0; none never looks
    answer_length: its cells
    inner: tokens a block; block_length is gen_length, since all that is left may be written
    cache: as in fast-dllm; the paper uses none
    """

    def knowing(s, window: Window, scores: Scores, candidates: Tensor, logits: Tensor, noise):
        commit, token = choose(s, window, scores, candidates)
        if answer_start is None:
            return commit, token
        share = (window.age + 1) / (window.age + window.remaining)
        best = logits[:, answer_start : answer_start + answer_length].topk(2).values  # [b, .., 2]
        gap = (best[..., 0] - best[..., 1]).double().mean(-1, keepdim=True)  # [b, 1]
        knows = gap >= (early if share < 0.33 else mid if share < 0.67 else late)
        return torch.where(knows, candidates, commit), token

    return Strategy(within(inner), cached(cache), serial, choose=knowing, block_length=None)
