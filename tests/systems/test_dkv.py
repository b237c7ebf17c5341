"""dKV-Cache: keys and values one forward after their token."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
from dllm import decode
from shared import LENGTHS, changed, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.fast_dllm import threshold_rule
from strategies.llada import quota, serial


@given(seeds)
def test_what_refreshes_always_is_no_cache(seed):
    """Would catch a cached path that differs in more than staleness: by its setting, and by windows that are always new."""
    delayed = build("dkv").view
    always = lambda s, window: delayed(s, dataclasses.replace(window, age=0))
    assert same(run(seed, "dkv", refresh=1), run(seed, Strategy(quota, always, serial)), run(seed, "llada"))


@given(seeds)
def test_it_recomputes_masks_and_what_was_written_last(seed):
    """Would catch a token that is cached in the forward that writes it: its keys would be those of a mask."""
    steps = decode(random_model(seed), random_prompt(seed, 6), "dkv", refresh=5, **LENGTHS)
    masks, wrote = 24, 0
    for step in steps:
        expected = 30 if step.window.age < 2 or step.window.age % 5 == 0 else masks + wrote
        assert step.rows == expected
        masks, wrote = int((step.x == MASK).sum()), int(step.commit.sum())


@given(seeds, st.sampled_from([1, 4]))
def test_with_prefill_the_prompt_is_computed_once(seed, refresh):
    """Would catch a refresh that takes the prompt along, in later blocks, too."""
    steps = list(decode(random_model(seed), random_prompt(seed, 6), "dkv", refresh=refresh, prefill=True, **LENGTHS))
    slots = [torch.arange(30)[step.at.query] for step in steps]
    assert slots[0].tolist() == list(range(30)) and all(query.min() >= 6 for query in slots[1:])
    assert refresh > 1 or all(step.rows == 24 for step in steps[1:])
    assert all(step.rows == 24 for step in steps[1:] if step.window.age < 2 or step.window.age % refresh == 0)


@given(seeds, st.sampled_from([1, 3]))
def test_one_layer_makes_prefill_exact(seed, refresh):
    """Would catch a prompt that is not seen."""
    assert same(*(run(seed, "dkv", layers=1, refresh=refresh, prefill=prefill) for prefill in (False, True)))


def test_it_differs_where_it_approximates():
    """Negative controls: at ordinary settings each of these changes some tokens."""
    assert changed("llada", {}, "dkv", {"refresh": 8}) >= 3
    assert changed("dkv", {}, "dkv", {"prefill": True}) >= 3


def test_what_cannot_be_combined_is_refused():
    """Would catch a combination that runs and is wrong."""
    with pytest.raises(ValueError, match="pipelined blocks need a view that never asks for the age of a block"):
        Strategy(threshold_rule(0.9), build("dkv").view, pipeline(0.1, 0.95))
