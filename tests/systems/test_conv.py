"""Convolutional decoding: a window that text grows by."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model
from dllm import decode
from kernels import Scores
from shared import changed, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.llada import full


@given(seeds)
def test_a_convolution_over_everything_is_llada_without_blocks(seed):
    """Would catch weights that differ where all see the same neighbours."""
    assert same(run(seed, "conv", width=400, block_length=24), run(seed, "llada", block_length=24))


def test_it_starts_where_text_stands():
    """Would catch a window that is off by one: with a width of 5 only two cells have a written neighbour at first."""
    step = next(decode(random_model(0), [1, 2, 3], "conv", width=5, gen_length=24, steps=2))
    assert step.commit[0].nonzero()[:, 0].tolist()[:2] == [0, 1] and step.window.end - step.window.start == 24


def test_the_order_of_the_surest_survives_saturation():
    """Would catch weights that are computed in probabilities: 1 - 1e-9 and 1 - 1e-12 are both 1.0 in float32, and would go by position."""
    doubt = torch.tensor([[1e-9, 1e-12, 1e-6, 1e-11]])
    scores, window = Scores(torch.zeros(1, 4), doubt), SimpleNamespace(remaining=4)
    rule = build("conv", width=400, kappa=1.0).rule
    order = [rule(scores, doubt < limit, window)[0].nonzero().item() for limit in (1.0, 1e-11, 1e-10)]
    assert order == [1, 1, 1] and rule(scores, doubt > 1e-12, window)[0].nonzero().item() == 3


@given(st.integers(1, 40), st.floats(0.05, 2), st.data())
def test_its_weight_is_that_of_the_paper(width, kappa, data):
    """Would catch another count of neighbours, and an even width that is not one more: confidence times tanh, in float64, in loops."""
    L = 12
    doubt = torch.tensor([data.draw(st.lists(st.floats(0.01, 5), min_size=L, max_size=L))])
    masked = torch.tensor([data.draw(st.lists(st.booleans(), min_size=L, max_size=L).filter(any))])
    written, half = [True] * half_of(width) + (~masked[0]).tolist() + [False] * half_of(width), half_of(width)
    value = [math.tanh(kappa * sum(written[i : i + 2 * half + 1])) / (1 + doubt[0, i].item()) if masked[0, i] else -1.0 for i in range(L)]
    best = build("conv", width=width, kappa=kappa).rule(Scores(doubt, doubt), masked, SimpleNamespace(remaining=L))[0].nonzero().item()
    assert value[best] >= max(value) * (1 - 1e-5)


def half_of(width: int) -> int:
    return width // 2


def test_a_narrow_one_differs():
    """Negative control: a width that is not asked for would pass the first test."""
    assert changed("llada", {"block_length": 24}, "conv", {"block_length": 24, "width": 5}) >= 3


def test_what_cannot_be_combined_is_refused():
    """Would catch a quota that several blocks share."""
    with pytest.raises(ValueError, match="a quota of tokens per step needs one block at a time"):
        Strategy(build("conv", width=5).rule, full, pipeline(0.1, 0.95))
    with pytest.raises(ValueError, match="steps 2 do not divide evenly among 3 blocks"):
        run(0, "conv", steps=2)
