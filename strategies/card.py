"""CARD (arXiv 2601.22031): masks behind the text of a causal model, which stays one."""

from typing import Literal

from model import Pass
from strategies import Strategy, View, Window, has, named
from strategies.blocks import in_blocks
from strategies.d2f import block_mask
from strategies.fast_dllm import Threshold


def causal_throughout(cached: bool = True) -> View:
    """A slot sees what is before it, masks included. What was not final yet is computed again, from
    the row before the block on, which predicts its first token."""

    @has(settled=0)
    def view(s, window: Window) -> Pass:
        first, end = min(window.final, window.start - s.shift) if cached else 0, window.end
        mask = block_mask(0, 1, first, end, s.x.device)
        return Pass(slice(first, end), slice(0, end) if cached else None, mask)

    return view


@named("card", model="tiny-ar", adapter="tiny-card")
def card(threshold: Threshold = 0.9, cache: Literal["none", "exact"] = "exact") -> Strategy:
    """CARD (arXiv 2601.22031): block by block with causal attention alone, inside the block, too.

    cache: exact reuses finished blocks, none recomputes them; the tokens are the same
    """
    view = causal_throughout(cache == "exact")
    return in_blocks(view, threshold, block_length=8, shift=1)
