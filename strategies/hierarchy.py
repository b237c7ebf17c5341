"""Hierarchical decoding (dInfer, arXiv 2510.08666): what is written together stands apart."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Scores
from strategies import Rule, Strategy, Sure, Window, named, rank, require
from strategies.fast_dllm import After, Before, CacheSetting, cached
from strategies.llada import serial


def one_a_run(high: float | Callable[[Window, int], Tensor], low: float) -> Rule:
    """The surest token of every run of masks if it is surer than `low`, and all surer than `high`,
    a number or, for N lines of a window, numbers [N, 1]."""

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        begins = candidates & ~F.pad(candidates, (1, 0))[:, :-1]
        run = begins.cumsum(-1)  # [N, L]: the number of the run a candidate is in, from 1
        place = rank(scores.doubt, candidates)
        none = torch.full_like(F.pad(place, (0, 1)), place.shape[-1])
        best = none.scatter_reduce(-1, run, place, "amin").gather(-1, run)
        enough = high(window, len(run)) if callable(high) else high
        return (place == best) & (scores.confidence > low) | (scores.confidence > enough)

    return rule


@named("hierarchy")
def hierarchy(
    high: Sure = 0.9,
    low: Sure = 0.62,
    cache: CacheSetting = "vicinity",
    prefix_look: Before = None,
    after_look: After = None,
) -> Strategy:
    """Hierarchical decoding (dInfer, arXiv 2510.08666): one token in every run of masks, so that
    what is written together stands apart.

    high: commit every token surer than this
    low: what the surest token of a run needs, at most `high`
    cache: as in fast-dllm; dInfer's own is vicinity
    """
    require(low <= high, "low", low, f"at most high={high:g}")
    return Strategy(
        one_a_run(high, low), cached(cache, prefix_look=prefix_look, after_look=after_look), serial
    )
