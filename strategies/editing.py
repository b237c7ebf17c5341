"""Token editing (LLaDA 2.1, arXiv 2602.08676): a written token may be replaced by another."""

from collections.abc import Iterator
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from kernels import LARGEST, Scores
from strategies import Rule, Strategy, Sure, Window, has, named
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import serial


def edit_rule(threshold: float, edit_threshold: float) -> Rule:
    """Commit every token at least this confident, and replace tokens by others that are more
    confident than edit_threshold, in all blocks of a window in which one must move."""

    @has(revises=True)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        moves = window.must.any(-1, keepdim=True).expand_as(window.must).reshape(-1, 1)  # [N, 1]
        edit = ~candidates & moves & (scores.confidence > edit_threshold)
        edit &= scores.doubt < LARGEST  # an EOS that eos="defer" holds back
        return candidates & (scores.confidence >= threshold) | edit, scores.token

    return rule


def overlapping(s) -> Iterator[Window]:
    """As `serial`, but the first forward of a block has the block before in its window, too."""
    for window in serial(s):
        if window.age == 0 and window.start > s.prompt_length:
            before = window.start - s.block_length
            window = replace(window, start=before, must=F.pad(window.must, (1, 0)))
        yield window


@named("editing")
def editing(
    threshold: Sure = 0.95,
    edit_threshold: Sure = 0.9,
    overlap: bool = False,
    cache: CacheSetting = "prefix",
) -> Strategy:
    """Token editing (LLaDA 2.1, arXiv 2602.08676): a written token is replaced when the model has
    come to prefer another, until its block is full.

    threshold: commit every token at least this confident
    edit_threshold: replace a token by one more confident than this
    overlap: once more in the first forward of the next block, as dLLM-Var does
    """
    schedule = overlapping if overlap else serial
    return Strategy(edit_rule(threshold, edit_threshold), cached(cache), schedule)
