"""A solution of exercise 3."""

from torch import Tensor

from kernels import Scores
from strategies import Window, rank


def factor(scores: Scores, candidates: Tensor, window: Window, factor: float = 1.0) -> Tensor:
    r = rank(scores.doubt, candidates) + 1  # [N, L]
    return candidates & ((r + 1) * (1 - scores.confidence) <= factor)
