"""A solution of exercise 14: the threshold is lower beside what was written before."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Scores
from strategies import Window


def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
    masked = F.pad(candidates, (1, 1), value=True)  # [N, L + 2]
    beside = ~(masked[:, :-2] & masked[:, 2:])  # [N, L]
    return scores.confidence >= torch.where(beside, 0.6, 0.9)
