"""A solution of exercise 5."""

from torch import Tensor

from kernels import Scores
from strategies import Window


def adaptive(
    scores: Scores,
    candidates: Tensor,
    window: Window,
    kept: int = 0,
    threshold: float = 0.9,
    alpha: float = 0.3,
) -> Tensor:
    masks = candidates.sum(-1, keepdim=True)  # [N, 1]
    share = (masks + kept) / (candidates.shape[-1] + kept)
    sinks = alpha if window.age > 0 else 0.0
    return scores.confidence >= threshold * (1 - sinks * (1 - share))
