"""DUS (arXiv 2506.19037): where tokens stand alone decides which are written together."""

import functools
from typing import Annotated

import torch
from torch import Tensor

from kernels import Scores
from strategies import Count, Strategy, Window, named
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import serial


@functools.cache
def levels(length: int, base: int, base_skip: int, device=None) -> Tensor:
    """Which forward of a block writes each cell, int64 [L]: every stride-th, then what is left of
    every stride / base -th, ... and in the end of all; a last one that would write fewer than the
    one before joins it. levels(8, 2, 1) is 0 2 1 2 0 2 1 2."""
    strides, stride = [], length // base**base_skip
    while stride > 1 and base > 1:
        strides.append(stride)
        stride //= base
    strides.append(1)
    level = [next(n for n, each in enumerate(strides) if i % each == 0) for i in range(length)]
    last = len(strides) - 1
    if last and level.count(last) < level.count(last - 1):
        last -= 1
    return torch.tensor(level, device=device).clamp(max=last)


@named("dus")
def dus(
    base: Count = 2, base_skip: Annotated[int, (1, 20)] = 1, cache: CacheSetting = "none"
) -> Strategy:
    """DUS (arXiv 2506.19037): tokens that stand apart together, then those between them, whatever
    the model thinks of them.

    base: by how much the stride between the tokens of a forward shrinks; 1 writes all at once
    base_skip: the first stride is block_length / base ** base_skip
    """

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        length = candidates.shape[-1]
        level = levels(length, base, base_skip, candidates.device)
        return level == level.where(candidates, length).amin(-1, keepdim=True)

    return Strategy(rule, cached(cache), serial)
