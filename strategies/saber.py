"""Saber (arXiv 2510.18165): an adaptive threshold, and tokens that are taken back."""

import torch
from torch import Tensor

from kernels import Scores
from strategies import MASKED, Count, Strategy, Window, named, rank
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import remembers, serial


class Saber:
    """Commit what is surer than the mean of the block's tokens when they were committed, at least
    n, and while there are masks left take back those that have lost most confidence.

    Following the authors' code: a position's loss is that of its likeliest token, whichever that
    is now, and counts from the forward before.
    """

    revises, check = True, staticmethod(remembers)

    def __init__(self, n: int, mu: int):
        self.n, self.mu = n, mu

    def __call__(self, scores: Scores, candidates: Tensor, window: Window):
        sure, live = scores.confidence, window.live
        if window.age == 0:
            self.chosen = sure.new_zeros(window.batch, sure.shape[-1])  # when committed
            self.last = torch.zeros_like(self.chosen)  # in the forward before
        chosen, place = self.chosen[live], rank(scores.doubt, candidates)
        counted = (chosen > 0).sum(-1, keepdim=True)  # [N, 1]: those taken back are among them
        mean = (chosen.sum(-1, keepdim=True) / counted).nan_to_num(1.0)  # 0 / 0: none so far
        commit = candidates & (sure > mean)
        few = commit.sum(-1, keepdim=True) < self.n
        commit = torch.where(few, candidates & (place < self.n), commit)
        count = commit.sum(-1, keepdim=True)
        back = ((count + self.mu - 1) // self.mu).clamp(min=self.n // 2) if self.mu else count * 0
        back = back.minimum(count - 1)  # so that there is progress
        # not what a template gave, and nothing of a block that is full now
        written = (commit | ~candidates & (chosen > 0)) & (candidates & ~commit).any(-1, True)
        drop = written & (rank(sure - self.last[live], written) < back)
        self.chosen[live], self.last[live] = torch.where(commit, sure, chosen), sure
        return commit ^ drop, torch.where(drop, MASKED, scores.token)


@named("saber")
def saber(n: Count = 2, mu: int = 8, cache: CacheSetting = "none") -> Strategy:
    """Saber (arXiv 2510.18165): a threshold that follows the tokens so far, and tokens that are
    taken back when they lose confidence.

    n: the fewest tokens a forward commits, while there are as many
    mu: commits for each token taken back; 0 takes none back
    cache: as in fast-dllm; the paper uses none
    """
    return Strategy(Saber(n, mu), cached(cache), serial)
