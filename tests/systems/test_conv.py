"""Convolutional decoding: a window that text grows by."""

import pytest
from hypothesis import given

from conftest import random_model
from dllm import decode
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


def test_a_narrow_one_differs():
    """Negative control: a width that is not asked for would pass the first test."""
    assert changed("llada", {"block_length": 24}, "conv", {"block_length": 24, "width": 5}) >= 3


def test_what_cannot_be_combined_is_refused():
    """Would catch a quota that several blocks share."""
    with pytest.raises(ValueError, match="a quota of tokens per step needs one block at a time"):
        Strategy(build("conv", width=5).rule, full, pipeline(0.1, 0.95))
    with pytest.raises(ValueError, match="steps 2 do not divide evenly among 3 blocks"):
        run(0, "conv", steps=2)
