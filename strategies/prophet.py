"""Prophet (arXiv 2508.19982): all that is left at once, when the model knows the answer."""

from dataclasses import replace

import torch
from torch import Tensor

from kernels import Scores
from strategies import Count, Strategy, Window, choose, has, named, require
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import quota, serial


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
    """Prophet (arXiv 2508.19982): LLaDA, until the answer's first choices stand out so far that all
    the rest is written at once.

    early: the mean gap of the answer's best two logits that is enough in the first third of `steps`
    mid: ... in the second third
    late: ... in the last
    answer_start: the cell where the answer to look at begins, from 0; none never looks
    answer_length: its cells
    inner: tokens a block; block_length is gen_length, since all the rest may be written
    """

    def fits(s) -> None:
        length, steps = s.block_length, s.settings.steps or s.settings.gen_length
        require(s.blocks == 1, "block_length", length, "gen_length: shorter blocks are `inner`")
        require(length % inner == 0, "inner", inner, f"a divisor of gen_length {length}")
        require(steps % (length // inner) == 0, "steps", steps, f"a multiple of {length // inner}")

    @has(quota=True, check=quota.check, fits=fits)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        number = torch.arange(candidates.shape[-1], device=candidates.device) // inner
        first = number.where(candidates, len(number)).amin(-1, keepdim=True)  # with a mask
        steps = (window.age + window.remaining) * inner // len(number)
        here = replace(window, remaining=steps - window.age % steps)
        return quota(scores, candidates & (number == first), here)

    def knowing(s, window: Window, scores: Scores, candidates: Tensor, logits: Tensor, noise):
        commit, token = choose(s, window, scores, candidates)
        share = (window.age + 1) / (window.age + window.remaining)  # of the steps
        best = logits[:, answer_start : answer_start + answer_length].topk(2).values  # [b, .., 2]
        gap = (best[..., 0] - best[..., 1]).double().mean(-1, keepdim=True)  # [b, 1]
        knows = gap >= (early if share < 0.33 else mid if share < 0.67 else late)
        return torch.where(knows, candidates, commit), token

    look = None if answer_start is None else knowing
    return Strategy(rule, cached(cache), serial, choose=look, block_length=None)
