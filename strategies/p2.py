"""P2 (arXiv 2502.03540): in each forward the best cells stay, written before or not."""

import torch
from torch import Tensor

from kernels import Scores
from strategies import MASKED, Strategy, Window, named, rank
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import one_block, serial


class Plan:
    """After forward i of T keep i / T of a block's cells, those of the largest log-probability,
    which counts eta times where a token is written; mask the others.

    As in the authors' code a written cell is judged by its likeliest token, whichever that is now.
    """

    quota = revises = True

    def __init__(self, eta: float):
        self.eta = eta

    def check(self, strategy: Strategy) -> None:
        one_block(strategy, "a rule that shares out a block's forwards")

    def __call__(self, scores: Scores, candidates: Tensor, window: Window):
        live, i, steps = window.live, window.age + 1, window.age + window.remaining
        if window.age == 0:
            self.own = candidates.new_zeros(window.batch, candidates.shape[-1])
            self.own[live] = candidates  # the cells that no template gave
        own = self.own[live] & candidates.any(-1, keepdim=True)  # nothing of a full block
        cells = own.sum(-1, keepdim=True)  # [N, 1]
        masked = (cells.float() * (1 - i * (1 / steps))).long()  # rounded as in the authors' code
        surprise = scores.doubt.log1p() * torch.where(candidates, 1.0, self.eta)
        keep = rank(surprise, own) < cells - masked
        drop = own & ~candidates & ~keep
        return candidates & keep | drop, torch.where(drop, MASKED, scores.token)


@named("p2")
def p2(eta: float = 1.0, cache: CacheSetting = "none") -> Strategy:
    """P2 (arXiv 2502.03540): a growing number of cells stays written, in each forward the best of
    all, so that tokens are taken back when others have become better.

    eta: how much the log-probability of a written token counts; 0 takes none back
    cache: as in fast-dllm; the paper uses none
    """
    return Strategy(Plan(eta), cached(cache), serial, block_length=None)
