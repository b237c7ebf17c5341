"""Streaming-dLLM (arXiv 2601.17917): far masks are not looked at, and the threshold sinks."""

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Share, Strategy, Sure, View, Window, has, named, trait
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import serial


def kept_suffix(window: Window, window_size: int | None) -> int:
    """How many slots behind the block stay visible: window_size, which the authors' code counts in
    tokens, the paper in blocks, and the last one."""
    pruned = window_size is not None and window.suffix > window_size
    return window_size + 1 if pruned else window.suffix


def pruned(view: View, window_size: int | None) -> View:
    """A view, all the same, but for the slots behind the block that are not kept."""

    @has(inside=view, **{name: trait(view, name) for name in ("settled", "shifts", "leads")})
    def narrowed(s, window: Window) -> Pass:
        at, S = view(s, window), s.x.shape[1]
        every = isinstance(at.query, slice) and at.visible in (None, slice(0, S))
        if not every or at != Pass(at.query, at.visible):
            raise ValueError("a view can be pruned that shows all slots, without a mask or gaps")
        if s.templated and window.age == 0:  # other rows may have opened what this one was given
            at = at._replace(query=slice(0, at.query.stop))
        near = window.end + kept_suffix(window, window_size) - 1
        if near == S - 1:
            return at
        visible = torch.arange(near + 1, device=s.x.device)
        visible[-1] = S - 1  # the last slot stays, and keeps its far position
        query = at.query if at.query.stop <= near else visible[at.query]
        return at._replace(query=query, visible=None if at.visible is None else visible)

    return narrowed


@named("streaming")
def streaming(
    threshold: Sure = 0.9,
    window_size: int | None = 96,
    confidence_alpha: Share = 0.3,
    cache: CacheSetting = "prefix",
) -> Strategy:
    """Streaming-dLLM (arXiv 2601.17917): the far suffix pruned, a threshold that sinks as a block
    fills, exit after the block with EOS.

    threshold: tau0; what a token needs in a block's first forward
    window_size: w; tokens kept visible behind the block, and the canvas's last one; none keeps all
    confidence_alpha: alpha; how far the threshold sinks, 0 for not at all
    cache: as in fast-dllm; the paper uses prefix
    """

    @has(masks_only=True)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        """As in the authors' code, the share of masks counts the block and the kept suffix, and a
        block's first forward uses the plain threshold."""
        kept = kept_suffix(window, window_size)
        share = (candidates.sum(-1, keepdim=True) + kept) / (candidates.shape[-1] + kept)  # [N, 1]
        alpha = 0.0 if window.age == 0 else confidence_alpha
        return scores.confidence >= threshold * (1 - alpha * (1 - share))

    return Strategy(rule, pruned(cached(cache), window_size), serial, eos="stop")
