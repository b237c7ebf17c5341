"""Blocks that a model was made for: both ways inside, nothing behind, and a cache that is exact.

What block diffusion models share; SDAR, Fast-dLLM v2, NBDiff and S2D2 are settings of it. They
differ in what a finished token sees, and in where the logits of a token stand.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from model import Pass
from strategies import Count, Share, Strategy, View, Window, has
from strategies.d2f import block_mask, pipeline
from strategies.fast_dllm import threshold_rule
from strategies.llada import serial

Context = Literal["block", "token", "causal"]
Shift = Annotated[int, (0, 1)]
Parts = Annotated[Count, "decode a block of the model in so many parts, each of block_length"]
Add = Annotated[Share | None, "open the next block when the last is so full; none when it is full"]


def context_mask(P: int, unit: int, context: Context, first: int, end: int, device=None) -> Tensor:
    """What finished tokens see, bool [Q, K] as `block_mask`: their block and all before it; or only
    what is before them, and the prompt all of itself (token), or not even that (causal)."""
    P, unit = {"block": (P, unit), "token": (P, 1), "causal": (0, 1)}[context]
    return block_mask(P, unit, first, end, device)


def blocks_of(context: Context, parts: int = 1, cached: bool = True) -> View:
    """A block, so many `parts` of the schedule, sees itself and all before it. Full, it is computed
    once more, as `context` says, by the forward that first sees the next: it is final from then on.
    """

    @has(settled=0)
    def view(s, window: Window) -> Pass:
        P, unit, device = s.prompt_length, s.block_length * parts, s.x.device
        begin = lambda slot: P + (slot - P) // unit * unit if slot else 0  # of the model's block
        first = min(begin(window.final), window.start - s.shift) if cached else 0
        end = min(s.x.shape[1], begin(window.end - 1) + unit)
        mask = block_mask(P, unit, first, end, device)
        if context != "block":
            full = (~s.masked().any(-1)).cumprod(-1).sum(-1) // parts * unit + P  # [b]
            finished = torch.arange(first, end, device=device) < full[:, None]  # [b, Q]
            theirs = context_mask(P, unit, context, first, end, device)
            mask = torch.where(finished[:, None, :, None], theirs, mask)  # [b, 1, Q, K]
        return Pass(slice(first, end), slice(0, end) if cached else None, mask)

    return view


def in_blocks(view: View, threshold: float | None, add: float | None = None, **own) -> Strategy:
    schedule = serial if add is None else pipeline(add, 1.0)
    return Strategy(threshold_rule(threshold), view, schedule, eos="stop", **own)
