"""RCD (arXiv 2601.22954): a mask that carries what was expected, read by a model made for it."""

from math import log
from typing import Annotated, Literal

import torch
from torch import Tensor

from strategies import Strategy, Window, named
from strategies.blocks import Add, Context, Shift, blocks_of, in_blocks
from strategies.fast_dllm import Threshold
from strategies.smoothing import Softened


def residual(logits: Tensor, table: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """What is added to a mask's embedding: a * (p E - E[mask]), float32 [..., C].

    logits [..., V], -inf for what is never written; table [V, C], E; mask [C], E[mask]
    p is their softmax at this temperature, and a its entropy as a share of the largest, log V: the
    less is known, the more of the mask gives way to the mean of what is expected.
    """
    p = (logits.float() / temperature).softmax(-1)
    share = torch.special.entr(p).sum(-1, keepdim=True) / log(p.shape[-1])
    mean = (p.to(table.dtype) @ table).float()  # no copy of the table, which may be gigabytes
    return share * (mean - mask.float())


class Residual(Softened):
    """Mix what was expected into the mask, more of it where less is known."""

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def expected(self, s, window: Window, logits: Tensor) -> Tensor:
        table = s.model.wte.weight  # [V, C]
        return residual(logits, table, table[s.mask_id], self.temperature).to(table.dtype)


@named("rcd", model="tiny-ar", adapter="tiny-nbdiff")
def rcd(
    threshold: Threshold = 0.85,
    residual_temperature: Annotated[float, (0.01, 100)] = 1.0,
    context: Context = "causal",
    shift: Shift = 1,
    block_add_threshold: Add = None,
    cache: Literal["none", "exact"] = "exact",
) -> Strategy:
    """RCD (arXiv 2601.22954): block by block, where a mask carries what the forward before expected
    in its place.

    residual_temperature: of what was expected; above 1 more of it is carried on
    context: what a finished token sees, as the model was made
    shift: slots before its own at which the logits of a token stand
    cache: exact reuses finished blocks, none recomputes them; the tokens are the same
    """
    view, mixed = blocks_of(context, cached=cache == "exact"), Residual(residual_temperature)
    own = {"block_length": 8, "shift": shift, "forward": mixed}
    return in_blocks(view, threshold, block_add_threshold, **own)
