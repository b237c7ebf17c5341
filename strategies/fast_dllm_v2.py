"""Fast-dLLM v2 (arXiv 2509.26328): block diffusion whose logits stand a slot before their tokens,
and blocks in sub-blocks with a cache of their own."""

from math import inf
from typing import Literal

import torch
from torch import Tensor

from model import Pass
from strategies import Strategy, View, Window, has, named
from strategies.blocks import Parts, blocks_of, in_blocks
from strategies.fast_dllm import Threshold
from strategies.llada import one_block


def around(view: View) -> View:
    """Recompute the whole block while the first token of the sub-block is a mask; then only the
    sub-block, and the rest of the block keeps what it was (the "dual cache")."""

    def check(strategy: Strategy) -> None:
        one_block(strategy, "a cache around a sub-block")

    def begins(s) -> Tensor:
        return s.masked()[..., 0]  # [b, n]: with a mask

    @has(settled=inf, check=check, inside=view, asks=begins)
    def narrowed(s, window: Window) -> Pass:
        at, start, end = view(s, window), window.start, window.end
        block = (start - s.prompt_length) // s.block_length
        whole = begins(s)[:, block]  # [b]
        low, high = at.query.start, at.query.stop
        if window.age == 0:
            whole = torch.ones_like(whole)
        elif not any(row[block] for row in s.told[begins]):
            low, high = start - s.shift, end
        query = torch.arange(low, high, device=s.x.device)
        own = whole[:, None] | (query >= start) & (query < end)  # [b, Q]
        mask = at.mask[..., low - at.query.start : high - at.query.start, :]
        return Pass(slice(low, high), at.visible, mask, own=own)

    return narrowed


@named("fast-dllm-v2", model="tiny-ar", adapter="tiny-fast-dllm-v2")
def fast_dllm_v2(
    threshold: Threshold = 0.9,
    sub_blocks: Parts = 1,
    cache: Literal["none", "exact", "dual"] = "exact",
) -> Strategy:
    """Fast-dLLM v2 (arXiv 2509.26328): block by block, in sub-blocks, by a model of the next token
    that learned to fill masks.

    cache: exact reuses finished blocks, none recomputes them, the tokens are the same; dual keeps
        also what is around a sub-block, once its first token is written
    """
    view = blocks_of("block", sub_blocks, cache != "none")
    view = around(view) if cache == "dual" else view
    return in_blocks(view, threshold, block_length=8, shift=1)
