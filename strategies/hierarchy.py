"""Hierarchical decoding (dInfer, arXiv 2510.08666): what is written together stands apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Scores
from strategies import Strategy, Sure, Window, named, rank, require
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import serial


@named("hierarchy")
def hierarchy(high: Sure = 0.9, low: Sure = 0.62, cache: CacheSetting = "vicinity") -> Strategy:
    """Hierarchical decoding (dInfer, arXiv 2510.08666): one token in every run of masks, so that
    what is written together stands apart.

    high: commit every token surer than this
    low: what the surest token of a run needs, at most `high`
    cache: as in fast-dllm; dInfer's own is vicinity
    """
    require(low <= high, "low", low, f"at most high={high:g}")

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        begins = candidates & ~F.pad(candidates, (1, 0))[:, :-1]
        run = begins.cumsum(-1)  # [N, L]: the number of the run a candidate is in, from 1
        place = rank(scores.doubt, candidates)
        none = torch.full_like(F.pad(place, (0, 1)), place.shape[-1])
        best = none.scatter_reduce(-1, run, place, "amin").gather(-1, run)
        return (place == best) & (scores.confidence > low) | (scores.confidence > high)

    return Strategy(rule, cached(cache), serial)
