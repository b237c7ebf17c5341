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

    width: of the window in which tokens count, itself included
    kappa: how fast their number comes to suffice
    """

    @has(quota=True, check=quota.check)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        """LLaDA's quota, by confidence times tanh(kappa * the number of tokens within width / 2).

        What lies before the block counts as written, what lies behind it as not.
        """
        before = F.pad((~candidates).float(), (width // 2, 0), value=1.0)
        written = F.pad(before, (0, width - 1 - width // 2))
        near = F.avg_pool1d(written[:, None], width, stride=1)[:, 0] * width  # [N, L]
        doubt = 1 / (scores.confidence * torch.tanh(kappa * near)) - 1
        return quota(scores._replace(doubt=doubt.clamp(max=LARGEST)), candidates, window)

    return Strategy(rule, full, serial, block_length=None)
