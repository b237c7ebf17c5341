"""Fast-dLLM v2: sub-blocks, and the cache around one."""

from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model
from dllm import decode
from shared import LENGTHS, answers, refused, run, same, seeds
from strategies import build
from strategies.blocks import blocks_of, in_blocks

PARTS = {"sub_blocks": 2, "block_length": 4}


@given(seeds, st.sampled_from([0.3, 0.6]))
def test_with_one_layer_the_cache_around_a_sub_block_is_exact(seed, threshold):
    """Would catch a slot that is shown before it was computed, or kept from before its token was written: a first layer's keys and values
    depend on nothing but token and place."""
    dual, exact = (run(seed, "fast-dllm-v2", layers=1, threshold=threshold, cache=cache, **PARTS) for cache in ("dual", "exact"))
    assert same(dual, exact) and dual.rows <= exact.rows


def test_with_two_layers_it_is_not():
    """Negative control: what stands around the sub-block no longer hears of it."""
    pairs = [[run(seed, "fast-dllm-v2", threshold=0.6, cache=cache, **PARTS) for cache in ("dual", "exact")] for seed in range(8)]
    assert sum(answers(dual) != answers(exact) for dual, exact in pairs) >= 3


def test_the_whole_block_is_computed_until_the_first_token_of_the_sub_block_is_written():
    """Would catch a cache that is kept too early, or refreshed too late."""
    narrow = 0
    for seed in range(4):
        first = True
        for step in decode(random_model(seed), [1, 2, 3], "fast-dllm-v2", cache="dual", threshold=0.7, **LENGTHS | PARTS):
            start = step.window.start
            masked = step.candidates[0, 0]  # before this forward wrote
            if step.window.age == 0 or masked:
                assert step.rows == (3 + 8 if first else step.rows) and step.rows >= 8
            else:
                assert step.rows == 4 and step.at.query == slice(start - 1, start + 4)
                narrow += 1
            first = False
    assert narrow >= 5


def test_its_settings_are_those_of_its_parts():
    """Would catch a setting that is ignored."""
    for seed in range(4):
        mine = in_blocks(blocks_of("block", 2), 0.4, shift=1)
        assert same(run(seed, "fast-dllm-v2", threshold=0.4, **PARTS), run(seed, mine, block_length=4))
        one = {"block_length": 8}
        assert same(run(seed, "fast-dllm-v2", cache="none", **one), run(seed, "fast-dllm-v2", **one))
    assert build("fast-dllm-v2").shift == 1


def test_a_wrong_setting_is_named():
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "fast-dllm-v2", "cache is 'prefix', expected one of none, exact, dual", cache="prefix")
