"""Streaming-dLLM: what is pruned, how the threshold sinks, and where it ends."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, random_model
from dllm import Canvas, Settings
from model import Pass
from shared import CACHES, LENGTHS, ONE, answers, changed, committed, refused, run, same, seeds, views
from strategies import Strategy, Window, build
from strategies.d2f import block_causal
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import full, quota, serial
from strategies.streaming import pruned


def test_the_rule_on_the_worked_example():
    """Would catch a change of its meaning; docs/idea.md works it out by hand."""
    adaptive, near = (build("streaming", threshold=0.9, confidence_alpha=0.5, window_size=w).rule for w in (None, 3))
    assert committed(adaptive, masked=[1, 2, 4, 5, 6, 7]) == [1]  # six of eight masked: 0.9 * (1 - 0.5 / 4) = 0.7875
    assert committed(adaptive, masked=[1, 2, 4, 5, 6, 7], age=0) == []
    assert committed(near, masked=[1, 2, 4, 5, 6, 7], suffix=8) == []  # ten of twelve: 0.825


def test_pruning_keeps_the_window_and_the_last_slot():
    """Would catch a window counted in blocks, a trailing slot that is lost, or one that is there twice."""
    canvas = Canvas(random_model(0), [[1, 2]], build("streaming"), Settings(**LENGTHS))
    window = Window(2, 10, 1, 2, 16, None, **ONE)
    at = pruned(cached("prefix"), 3)(canvas, window)
    assert at.visible.tolist() == [*range(13), 25] and at.query.tolist() == [*range(2, 13), 25]
    assert pruned(cached("prefix"), 0)(canvas, window).visible.tolist() == [*range(10), 25]
    assert pruned(cached("prefix"), 15)(canvas, window).visible == slice(0, 26)
    at = pruned(cached("dual"), 3)(canvas, window)
    assert at.visible.tolist() == [*range(13), 25] and at.query == slice(2, 10)
    at = pruned(full, 3)(canvas, window)
    assert at.visible is None and at.query.tolist() == [*range(13), 25]


@given(seeds, st.sampled_from(["none", "prefix", "dual"]), st.sampled_from([0.4, 0.7]))
def test_without_pruning_it_is_its_cache_up_to_the_block_with_eos(seed, cache, tau):
    """Would catch an exit that is too early, too late, or does not write EOS."""
    streamed = run(seed, "streaming", cache=cache, threshold=tau, window_size=24, confidence_alpha=0.0)
    plain = answers(run(seed, "fast-dllm", cache=cache, threshold=tau))[0]
    if EOS in plain:
        end = (plain.index(EOS) // 8 + 1) * 8
        plain[end:] = [EOS] * (24 - end)
    assert answers(streamed)[0] == plain


def test_some_of_these_runs_end_early():
    """Negative control for the test above: without an EOS it says nothing about the exit."""
    runs = [run(seed, "streaming", threshold=0.4, confidence_alpha=0.0) for seed in range(40)]
    assert sum(answers(r)[0][-8:] == [EOS] * 8 for r in runs) >= 5


@given(seeds, st.sampled_from(["prefix", "dual"]), st.sampled_from([None, 3]))
def test_a_cache_that_is_refreshed_in_every_step_equals_none(seed, cache, window_size):
    """Would catch an approximation beyond staleness, such as a mask or a slot that only the cached path sees."""
    fresh, rule = pruned(cached(cache), window_size), threshold_rule(0.5)
    always = lambda s, window: fresh(s, dataclasses.replace(window, age=0))
    assert same(run(seed, Strategy(rule, always, serial)), run(seed, Strategy(rule, pruned(full, window_size), serial)))


def test_it_differs_where_it_prunes():
    """Negative controls: with a pruned suffix, or a threshold that sinks, some tokens must change."""
    assert changed("streaming", {"window_size": 0}, "streaming", {"window_size": None}) >= 3
    wide = {"window_size": None, "threshold": 0.7}
    assert changed("streaming", wide | {"confidence_alpha": 0.0}, "streaming", wide | {"confidence_alpha": 0.9}) >= 3


@pytest.mark.parametrize(
    "settings, message",
    [({"window_size": -1}, "window_size is -1"), ({"confidence_alpha": 1.5}, "confidence_alpha is 1.5, expected between 0 and 1")],
)
def test_a_wrong_setting_is_named(settings, message):
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "streaming", message, **settings)


def test_a_view_that_shows_less_already_is_not_pruned():
    """Would catch slots that become visible by pruning, and a tensor error for a mask, gaps or layers of a view's own."""
    growing = lambda s, window: Pass(slice(window.final, window.end), slice(0, window.end))
    others = [view for name, view in views("dkv", "sparse", "dllm-cache").items() if name not in CACHES]
    for view in (growing, block_causal(), *others):
        with pytest.raises(ValueError, match="a view can be pruned that shows all slots, without a mask or gaps"):
            run(0, Strategy(quota, pruned(view, 2), serial))
