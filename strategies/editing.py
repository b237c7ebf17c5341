"""Token editing (LLaDA 2.1, arXiv 2602.08676): a written token may be replaced by another."""

from torch import Tensor

from kernels import Scores
from strategies import Strategy, Sure, Window, has, named
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import serial


@named("editing")
def editing(
    threshold: Sure = 0.95, edit_threshold: Sure = 0.9, cache: CacheSetting = "prefix"
) -> Strategy:
    """Token editing (LLaDA 2.1, arXiv 2602.08676): a written token is replaced when the model has
    come to prefer another, until its block is full.

    threshold: commit every token at least this confident
    edit_threshold: replace a token by one more confident than this
    """

    @has(revises=True)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        unfilled = candidates.any(-1, keepdim=True)
        edit = ~candidates & unfilled & (scores.confidence > edit_threshold)
        return candidates & (scores.confidence >= threshold) | edit, scores.token

    return Strategy(rule, cached(cache), serial)
