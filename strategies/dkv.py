"""dKV-Cache (arXiv 2505.15781): keys and values are kept a forward after their token."""

from math import inf

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

    @has(settled=inf)
    def delayed(s, window: Window) -> Pass:
        S = s.x.shape[1]
        if window.age < 2 or window.age % refresh == 0:
            first = s.prompt_length if prefill and s.cache is not None else 0
            return Pass(slice(first, S), slice(0, S))
        # masks, and what was written last: until now its keys and values are those of a mask
        own = (s.x == s.mask_id) | (s.written == s.written.amax(-1, keepdim=True))  # [B, S]
        own = own[s.live]
        query = own.any(0).nonzero()[:, 0]
        return Pass(query, slice(0, S), own=own[:, query])

    return Strategy(threshold_rule(threshold), delayed, serial)
