"""P2 (arXiv 2502.03540): in each forward the best cells stay, written before or not."""

import torch
from torch import Tensor

from kernels import Scores
from strategies import MASKED, Strategy, Window, has, named, rank
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import quota, serial


@named("p2")
def p2(eta: float = 1.0, cache: CacheSetting = "none") -> Strategy:
    """P2 (arXiv 2502.03540): a growing number of cells stays written, in each forward the best of
    all, so that tokens are taken back when others have become better.

    eta: how much the log-probability of a written token counts; 0 takes none back
    """

    @has(quota=True, revises=True, check=quota.check)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """After forward i of T keep i / T of the block's cells, those of the largest
        log-probability, and mask the others. As in the authors' code a written cell is judged by
        its likeliest token, whichever that is now."""
        i, steps = window.age + 1, window.age + window.remaining
        own = window.own & candidates.any(-1, keepdim=True)  # a full block stays as it is
        cells = own.sum(-1, keepdim=True)  # [N, 1]
        masked = (cells.float() * (1 - i * (1 / steps))).long()  # rounded as in the authors' code
        surprise = scores.doubt.log1p() * torch.where(candidates, 1.0, eta)
        keep = rank(surprise, own) < cells - masked
        drop = own & ~candidates & ~keep
        return candidates & keep | drop, torch.where(drop, MASKED, scores.token)

    return Strategy(rule, cached(cache), serial, block_length=None)
