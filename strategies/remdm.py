"""ReMDM for LLaDA (arXiv 2503.00307): near a block's end, the least sure tokens once more."""

import torch
from torch import Tensor

from kernels import Scores
from strategies import MASKED, Count, Strategy, Window, named, rank
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import remembers, serial


class Remask:
    """LLaDA's quota; but after seven eighths of a block as many forwards more as `extra` says, each
    of which finds the `number` tokens masked again that were least sure when they were written.

    The first of them comes when as many forwards are done as seven eighths of the block's cells, or
    else all, as in the authors' code.
    """

    quota, revises, check = True, True, staticmethod(remembers)

    def __init__(self, extra: int, number: int):
        self.extra, self.number = extra, number

    def __call__(self, scores: Scores, candidates: Tensor, window: Window):
        (_, L), live, steps = candidates.shape, window.live, window.age + window.remaining
        if window.age == 0:
            self.doubt = scores.doubt.new_full((window.batch, L), -1.0)  # when written; -1 for none
            self.back = candidates.new_zeros(window.batch, 1, dtype=torch.int64)  # a forward ago
        first = min(max(min(L * 7 // 8, L - 1), 1), steps)
        again = range(first, first + self.extra)  # the forwards more
        left = steps - window.age + min(max(window.age - first, 0), self.extra)
        masks = candidates.sum(-1, keepdim=True)  # [N, 1]
        count = self.back[live] if window.age in again else (masks + left - 1) // left
        commit = candidates & (rank(scores.doubt, candidates) < count)
        doubt = torch.where(commit, scores.doubt, self.doubt[live])
        written, older = doubt >= 0, ((doubt >= 0) & ~commit).any(-1, keepdim=True)
        # something stays of what is written, and nothing goes of a block that was full before
        most = (written.sum(-1, keepdim=True) - (~older).long()).clamp(max=self.number) * (
            masks > 0
        )
        drop = written & (rank(-doubt, written) < most * (window.age + 1 in again))
        self.doubt[live], self.back[live] = doubt.masked_fill(drop, -1), drop.sum(-1, keepdim=True)
        return commit | drop, torch.where(drop, MASKED, scores.token)


@named("remdm")
def remdm(extra: int = 4, number: Count = 1, cache: CacheSetting = "none") -> Strategy:
    """ReMDM for LLaDA (arXiv 2503.00307): LLaDA's quota, and near the end of a block some forwards
    more, each of which writes the least sure tokens anew.

    extra: such forwards in a block
    number: tokens that each of them finds masked again
    """
    return Strategy(Remask(extra, number), cached(cache), serial)
