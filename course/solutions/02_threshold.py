"""A solution of exercise 2."""

from torch import Tensor

from kernels import Scores
from strategies import Window, rank


def threshold(scores: Scores, candidates: Tensor, window: Window, threshold: float = 0.9) -> Tensor:
    sure = candidates & (scores.confidence >= threshold)
    stuck = window.must.reshape(-1, 1) & ~sure.any(-1, keepdim=True)  # [N, 1]
    return sure | stuck & (rank(scores.doubt, candidates) == 0)
