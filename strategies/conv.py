"""Convolutional decoding (arXiv 2509.15188): no blocks, but a window that text grows by."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import LARGEST, Scores
from strategies import Count, Strategy, Window, has, named
from strategies.llada import full, quota, serial


@named("conv")
def conv(width: Count = 64, kappa: float = 1.0) -> Strategy:
    """Convolutional decoding (arXiv 2509.15188): no blocks; a token counts by how many stand near
    it already.

    width: of the window in which tokens count, itself included; an even one is one more
    kappa: how fast their number comes to suffice
    """

    @has(quota=True, check=quota.check)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        """LLaDA's quota, by confidence times tanh(kappa * the number of tokens within width / 2).

        What lies before the block counts as written, what lies behind it as not.
        """
        half = width // 2
        written = F.pad(F.pad((~candidates).float(), (half, 0), value=1.0), (0, half))
        near = F.avg_pool1d(written[:, None], 2 * half + 1, 1)[:, 0] * (2 * half + 1)  # [N, L]
        weight = torch.tanh(kappa * near)
        doubt = (scores.doubt + (1 - weight)) / weight  # that of weight * confidence
        return quota(scores.ordered(doubt.clamp(max=LARGEST)), candidates, window)

    return Strategy(rule, full, serial, block_length=None)
