"""Autoregressive decoding: the baseline, for a model that was trained to predict the next token."""

from model import Pass
from strategies import Strategy, Window, has, named
from strategies.d2f import block_mask
from strategies.llada import quota, serial


def one_token(strategy: Strategy) -> None:
    if not (strategy.fixed and strategy.block_length == 1 and strategy.shift == 1):
        raise ValueError("a causal view needs Strategy(..., block_length=1, fixed=True, shift=1)")


@has(settled=0, shifts=True, check=one_token)
def causal(s, window: Window) -> Pass:
    """Predict a block of one token from those before it, each of which is computed once."""
    end = window.end - 1
    mask = block_mask(0, 1, window.final, end, s.x.device)
    return Pass(slice(window.final, end), slice(0, end), mask)


@named("ar", model="tiny-ar")
def ar() -> Strategy:
    """Autoregressive decoding: left to right, one token a forward, an exact cache; the baseline."""
    return Strategy(quota, causal, serial, eos="stop", block_length=1, fixed=True, shift=1)
