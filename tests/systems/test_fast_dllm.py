"""Fast-dLLM's thresholds, and its caches against the equalities that define them."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
from shared import answers, changed, committed, refused, rules, run, same, seeds
from strategies import Strategy
from strategies.d2f import block_causal, pipeline
from strategies.fast_dllm import cached, factor_rule, threshold_rule
from strategies.llada import full, quota, serial

# --- the rules


def test_rules_on_the_worked_example():
    """Would catch a change of any rule's meaning; docs/idea.md works these out by hand."""
    assert committed(threshold_rule(0.9)) == [0, 3]
    assert committed(threshold_rule(0.76)) == [0, 1, 3, 6]
    assert committed(threshold_rule(0.92, strict=True)) == [0]
    assert committed(factor_rule(1.0)) == [0, 1, 3]


@given(st.lists(st.floats(0.01, 0.999), min_size=8, max_size=8), st.sets(st.integers(0, 7), min_size=1), st.floats(0, 3))
def test_factor_rule_equals_a_loop_over_ranks(confidence, masked, factor):
    """Would catch an off-by-one in the rank, and a run that goes on behind its first failure."""
    order = sorted(masked, key=lambda i: -torch.tensor(confidence[i]).item())
    expected = []
    for r, i in enumerate(order, start=1):
        c = 1 / (1 + (1 / torch.tensor(confidence[i]) - 1))
        if c < 1 - torch.tensor(factor) / (r + 1):
            break
        expected.append(i)
    assert committed(factor_rule(factor), confidence=confidence, masked=masked) == sorted(expected)


@given(seeds, st.sampled_from(["none", "prefix", "dual"]))
def test_an_unreachable_threshold_commits_one_token_a_forward(seed, cache):
    """Would catch a rule that accepts more, or other, than the surest token when nothing passes."""
    one_each = run(seed, "fast-dllm", cache=cache, threshold=None)
    assert same(run(seed, "fast-dllm", cache=cache, threshold=1.5), one_each) and one_each.nfe == 24
    assert cache != "none" or same(one_each, run(seed, "llada"))


@given(seeds, st.sampled_from(["none", "prefix", "dual"]))
def test_threshold_zero_fills_a_block_in_one_forward(seed, cache):
    """Would catch the originals' second, useless forward in cached modes."""
    assert run(seed, "fast-dllm", cache=cache, threshold=0.0).nfe == 3


@given(seeds, st.sampled_from(list(rules("quota", "threshold", "factor", "localleap", "streaming"))), st.sampled_from(["prefix", "dual"]))
def test_any_rule_works_with_any_cache(seed, rule, cache):
    """Would catch a rule that leans on the view it is usually paired with."""
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    mine = Strategy(rules(rule)[rule], cached(cache), serial)
    together = run(seed, mine, *prompts)
    assert answers(together) == [answers(run(seed, mine, prompt))[0] for prompt in prompts]
    assert MASK not in sum(answers(together), [])


# --- the caches


@given(seeds, st.sampled_from(["prefix", "dual", "vicinity", "frozen"]), st.sampled_from([0.3, 0.6]))
def test_one_layer_makes_approximate_caches_exact(seed, cache, tau):
    """Would catch a wrong slot or position: in the first layer K/V depend on nothing but the token and its place."""
    plain, saving = (run(seed, "fast-dllm", layers=1, cache=c, threshold=tau) for c in ("none", cache))
    assert same(plain, saving) and (saving.rows < plain.rows or plain.nfe == 3)


@given(seeds, st.sampled_from(["prefix", "dual"]))
def test_a_cache_that_is_refreshed_in_every_step_equals_none(seed, cache):
    """Would catch an approximation beyond staleness, such as a mask or a slot that only the cached path sees."""
    fresh = cached(cache)
    always = lambda s, window: fresh(s, dataclasses.replace(window, age=0))
    assert same(run(seed, Strategy(threshold_rule(0.5), always, serial)), run(seed, "fast-dllm", cache="none", threshold=0.5))


@given(seeds, st.sampled_from([0.3, 0.6]))
def test_a_vicinity_as_wide_as_the_canvas_is_no_cache(seed, tau):
    """Would catch slots that the widened query misses."""
    near, none = (run(seed, "fast-dllm", cache=cache, threshold=tau, gen_length=16) for cache in ("vicinity", "none"))
    assert same(near, none)


def test_a_vicinity_lies_between_dual_and_full():
    """Would catch a vicinity that recomputes all, or nothing more than the block."""
    prompt = random_prompt(0, 40)
    dual, vicinity, none = (run(0, "fast-dllm", prompt, cache=c, threshold=None, gen_length=64).rows for c in ("dual", "vicinity", "none"))
    assert dual < vicinity < none


@given(seeds)
def test_a_frozen_prefix_computes_the_prompt_once(seed):
    """Would catch a refresh, and a block that is frozen while its last tokens' keys are still those of masks."""
    frozen, prefix = (run(seed, "fast-dllm", random_prompt(seed, 9), cache=cache, threshold=2.0) for cache in ("frozen", "prefix"))
    assert frozen.rows == 33 + 7 * 24 + 24 + 7 * 16 + 16 + 7 * 8  # a block's first forward takes the block before it along
    assert frozen.rows < prefix.rows


@given(seeds)
def test_a_prefix_that_is_never_frozen_is_no_cache(seed):
    """Would catch an approximation beyond what is frozen: with nothing final, FreeCache recomputes and sees the whole canvas."""
    frozen = cached("frozen")
    never = lambda s, window: frozen(s, dataclasses.replace(window, final=0))
    one, other = run(seed, Strategy(quota, never, serial)), run(seed, "llada")
    assert one.tokens.equal(other.tokens) and one.rows == other.rows


def test_they_differ_where_they_approximate():
    """Negative controls: with stale slots, or more tokens at a time, some tokens must change."""
    plain = {"cache": "none", "threshold": 0.5}
    for one, other in (("none", "prefix"), ("prefix", "dual"), ("none", "frozen"), ("dual", "vicinity")):
        assert changed("fast-dllm", plain | {"cache": one}, "fast-dllm", plain | {"cache": other}) >= 2
    assert changed("fast-dllm", plain, "llada", {}) >= 3


# --- what is refused


def test_combinations_without_meaning_are_refused():
    """Would catch a pipeline over a cache that goes stale unnoticed."""
    for view in (cached("prefix"), cached("dual")):
        with pytest.raises(ValueError, match="pipelined blocks need a view that never asks for the age of a block"):
            Strategy(threshold_rule(0.9), view, pipeline(0.1, 0.9))
    with pytest.raises(ValueError, match="a quota of tokens per step needs one block at a time"):
        Strategy(quota, block_causal(), pipeline(0.1, 0.9))
    Strategy(threshold_rule(0.9), full, pipeline(0.1, 0.9))  # the control


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"cache": "exact"}, "cache is 'exact', expected one of none, prefix, dual"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": 0.8, "factor": 1.0}, "threshold=0.8 and factor=1 are two rules"),
        ({"remasking": "margin"}, "strategy fast-dllm has no setting remasking: that is a setting of llada"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "fast-dllm", message, **settings)
