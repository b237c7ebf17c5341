"""D2F's mask, its exact cache, and its pipeline."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model
from dllm import decode
from shared import LENGTHS, changed, committed, refused, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import block_causal, block_mask
from strategies.fast_dllm import threshold_rule
from strategies.llada import serial


def test_block_mask_of_the_docstring():
    """Would catch a mask that is off by one block."""
    mask = block_mask(2, 2, 0, 6).int().tolist()
    assert mask == [[1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0, 0]] * 2 + [[1, 1, 1, 1, 1, 1]] * 2
    assert block_mask(2, 2, 4, 6).int().tolist() == mask[4:]


def test_a_token_exactly_as_sure_as_the_threshold_is_left():
    """Would catch a comparison other than the paper's, which is strict."""
    assert committed(build("d2f", skip_threshold=0.92).rule) == [0]


@given(seeds, st.sampled_from([0.3, 0.6]), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.5, 1.0]))
def test_its_exact_cache_equals_recomputing_everything(seed, tau, add, act):
    """Would catch K/V that are taken from a block before its last token was written."""
    settings = {"skip_threshold": tau, "block_add_threshold": add, "decoded_token_threshold": act}
    cached, uncached = (run(seed, "d2f", cache=cache, **settings) for cache in ("exact", "none"))
    assert same(cached, uncached) and (cached.rows < uncached.rows or cached.nfe == 1)


@given(seeds, st.sampled_from([0.3, 0.6]))
def test_one_block_at_a_time_is_serial_decoding_under_the_block_mask(seed, tau):
    """Would catch a pipeline that opens or activates too early, and a serial schedule that recomputes what is exact."""
    piped = run(seed, "d2f", skip_threshold=tau, block_add_threshold=1.0, decoded_token_threshold=1.0)
    rule = threshold_rule(tau, strict=True)
    cached, uncached = (run(seed, Strategy(rule, view, serial, eos="stop")) for view in (block_causal(), block_causal(cached=False)))
    assert same(piped, cached, uncached) and piped.rows == cached.rows and (cached.rows < uncached.rows or cached.nfe == 1)


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_activation_is_idle_when_blocks_are_added_later_still(seed, a, b):
    """Would catch an order of the two steps other than the paper's: a block that opens at once meets its activation threshold."""
    act, add = sorted((a, b))
    one, two = (run(seed, "d2f", skip_threshold=0.6, block_add_threshold=add, decoded_token_threshold=t) for t in (act, 0.0))
    assert same(one, two)


@pytest.mark.parametrize("add, opened", [(0.0, [1, 2, 3, 3]), (0.25, [1, 1, 2, 2]), (0.3, [1, 1, 1, 2]), (1.0, [1, 1, 1, 1])])
def test_a_block_opens_when_the_last_is_filled_up_to_the_share(add, opened):
    """Would catch a block that opens only beyond the share, or by that of another block: one token a forward, in the first block alone."""
    slow = {"block_add_threshold": add, "decoded_token_threshold": 1.0, "skip_threshold": 2.0, "eos": "fill"}
    steps = decode(random_model(0), [1, 2], "d2f", **slow, **LENGTHS)
    assert [(step.window.end - 2) // 8 for step, _ in zip(steps, opened)] == opened


def test_it_differs_where_blocks_overlap():
    """Negative controls: with another mask, or several blocks in flight, some tokens must change."""
    assert changed("d2f", {"eos": "fill"}, "fast-dllm", {"cache": "none"}) >= 3
    early, late = {"block_add_threshold": 0.1, "skip_threshold": 0.6}, {"block_add_threshold": 1.0, "skip_threshold": 0.6}
    assert changed("d2f", early, "d2f", late) >= 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"block_add_threshold": 1.1}, "block_add_threshold is 1.1, expected between 0 and 1"),
        ({"decoded_token_threshold": -1.0}, "decoded_token_threshold is -1.0"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "d2f", message, **settings)
