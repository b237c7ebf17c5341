"""LocalLeap (arXiv 2510.07081): what stands next to sure tokens needs less confidence."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import Scores
from strategies import Strategy, Sure, Window, named, require
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import serial


@named("localleap")
def localleap(
    threshold: Sure = 0.9,
    relaxed_threshold: Sure = 0.75,
    radius: int = 4,
    cache: CacheSetting = "none",
) -> Strategy:
    """LocalLeap (arXiv 2510.07081): a lower threshold next to tokens that are sure.

    threshold: kappa; a candidate at least this confident is committed and is an anchor
    relaxed_threshold: tau; what a neighbour of an anchor needs, at most `threshold`
    radius: W; how many tokens away a neighbour may be, on either side
    cache: as in fast-dllm; the paper uses none
    """
    valid = f"at most threshold={threshold:g}"
    require(relaxed_threshold <= threshold, "relaxed_threshold", relaxed_threshold, valid)

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        anchors = candidates & (scores.confidence >= threshold)
        reach = min(radius, anchors.shape[-1])
        near = F.max_pool1d(anchors.float()[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]
        return scores.confidence >= torch.where(near > 0, relaxed_threshold, threshold)  # [N, L]

    return Strategy(rule, cached(cache), serial)
