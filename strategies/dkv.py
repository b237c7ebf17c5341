"""dKV-Cache (arXiv 2505.15781): keys and values are kept a forward after their token."""

from math import inf

import torch
from torch import Tensor

from model import Pass
from strategies import Count, Strategy, Window, has, named
from strategies.fast_dllm import Threshold, threshold_rule
from strategies.llada import serial


@named("dkv")
def dkv(refresh: Count = 8, prefill: bool = False, threshold: Threshold = None) -> Strategy:
    """dKV-Cache (arXiv 2505.15781): keys and values are reused from the second forward after their
    token was written, and refreshed at times.

    refresh: recompute everything every so many forwards of a block, and in its first two
    prefill: everything but the prompt, which is computed in the first forward only
    """

    def owned(s) -> Tensor:
        # masks, and what was written last: until now its keys and values are those of a mask
        own = (s.x == s.mask_id) | (s.written == s.written.amax(-1, keepdim=True))  # [B, S]
        return own[s.live]

    def counting(s) -> Tensor:
        """How many slots any unfinished row owns: before the first block, in each, and behind the
        last, [b, n + 2]."""
        any_row = (owned(s) & s.masked().flatten(1).any(-1, keepdim=True)).any(0)  # [S]
        first, G = s.prompt_length - s.shift, s.settings.gen_length
        parts = any_row.split((first, *[s.block_length] * s.blocks, len(any_row) - first - G))
        return torch.stack([part.sum() for part in parts]).expand(len(s.live), -1)

    @has(settled=inf, asks=counting)
    def delayed(s, window: Window) -> Pass:
        S = s.x.shape[1]
        if window.age < 2 or window.age % refresh == 0:
            first = s.prompt_length if prefill and s.cache is not None else 0
            return Pass(slice(first, S), slice(0, S))
        every, counts = owned(s), s.told[counting][0]
        block, total = (window.start - s.prompt_length) // s.block_length, sum(counts)
        query = every.any(0).int().argsort(descending=True, stable=True)[:total]  # ascending
        before = sum(counts[: 1 + block])
        rows = torch.arange(before, before + counts[1 + block], device=query.device)
        return Pass(query, slice(0, S), rows=rows, own=every[:, query])

    return Strategy(threshold_rule(threshold), delayed, serial)
