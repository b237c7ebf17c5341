"""MARS-Cache of text: intervals that differ from layer to layer, and what follows from them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dllm
import strategies.mars
from conftest import random_model, random_prompt
from dllm import decode, generate
from shared import LENGTHS, answers, refused, run, same, seeds
from strategies import STRATEGIES, build, trait
from strategies.mars import intervals

steps, tiers = st.integers(1, 9), st.integers(1, 4)
shares, thresholds = st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([None, 0.5])
DEEP = {"layers": 4}  # of two layers the first has its answer always, and there would be no pyramid of answers


@given(seeds, steps, steps, shares, thresholds)
def test_of_one_tier_it_is_dllm_cache(seed, prompt, gen, share, threshold):
    """Would catch intervals that are not those of the last layer, and a setting that is not handed on: tokens, forwards and rows."""
    settings = {"prompt_interval_steps": prompt, "gen_interval_steps": gen, "transfer_ratio": share, "threshold": threshold}
    mine, other = (run(seed, name, **DEEP, **own, **settings) for name, own in (("mars", {"tiers": 1}), ("dllm-cache", {})))
    assert same(mine, other) and mine.written.equal(other.written) and mine.rows == other.rows


@given(seeds, thresholds)
def test_what_refreshes_always_is_no_cache(seed, threshold):
    """Would catch a layer that lags behind though no interval is longer than a forward; also if all of the answer is computed by its share."""
    always = {"prompt_interval_steps": 1, "gen_interval_steps": 1, "tiers": 1, "threshold": threshold}
    none, mine = run(seed, "fast-dllm", cache="none", threshold=threshold, **DEEP), run(seed, "mars", **always, **DEEP)
    assert same(mine, none) and mine.rows == none.rows
    assert same(run(seed, "mars", **always | {"gen_interval_steps": 9, "transfer_ratio": 1.0}, **DEEP), none)


@given(st.integers(1, 10**6), st.integers(1, 16), st.integers(1, 64))
def test_intervals_never_grow_with_depth(interval, most, layers):
    """Would catch a deep layer that is refreshed less often than one that it reads, or in other forwards: what is new would stop there; and
    tiers that are not alike in size."""
    tiers = min(most, layers)
    own = intervals(interval, tiers, layers)
    assert len(own) == layers and own == sorted(own, reverse=True) and own[-1] == interval
    assert all(one % other == 0 for one, other in zip(own, own[1:]))
    sizes = [own.count(interval * 2**tier) for tier in range(tiers)]
    assert sum(sizes) == layers and max(sizes) - min(sizes) <= 1


@given(steps, steps, tiers, tiers)
def test_more_tiers_never_compute_more(prompt, gen, one, other):
    """Would catch a pyramid that shortens intervals."""
    few, many = (run(0, "mars", prompt_interval_steps=prompt, gen_interval_steps=gen, tiers=n, **DEEP) for n in sorted((one, other)))
    assert few.rows >= many.rows


SMALL = {"prompt_interval_steps": 3, "gen_interval_steps": 2, "tiers": 3}  # of three layers: the prompt 12, 6, 3; the answer 8, 4, 2


def test_rows_are_those_it_computes():
    """Would catch positions counted in layers that leave them out. A prompt of 6, an answer of 24, of which a quarter is 6; the first layer
    has all of the answer in every forward."""
    assert (intervals(3, 3, 3), intervals(2, 3, 3)) == ([12, 6, 3], [8, 4, 2])
    took = list(decode(random_model(1, n_layers=3), random_prompt(1, 6), "mars", **SMALL, **LENGTHS))[:9]
    by_layer = [(30, 30, 30), (24, 6, 6), (24, 6, 24), (24, 6, 12), (24, 24, 24), (24, 6, 6), (24, 12, 30), (24, 6, 6), (24, 24, 24)]
    assert [step.rows for step in took] == [sum(layers) // 3 for layers in by_layer]
    assert [step.at.query.start == 0 for step in took] == [turn % 3 == 0 for turn in range(9)]


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_layer_is_refreshed_in_its_own_forwards_and_in_no_other(threshold):
    """Would catch a layer that computes what another is due, or writes what it only passes on: what the cache holds of the prompt changes
    in a layer when that is due, of the answer no more than its share when it is not. Under a threshold forwards count within a block."""
    canvas = dllm.prepare(random_model(3, n_layers=3), random_prompt(3, 6), "mars", LENGTHS | SMALL | {"threshold": threshold})
    before, forwards = torch.zeros(3, 30, 32), 0
    for turn, step in enumerate(dllm.stream(canvas)):
        if canvas.cache is None or not len(canvas.live):
            break  # finished: its row is gone
        forwards, now = turn if threshold is None else step.window.age, canvas.cache.added[:, 0].clone()
        moved = (now != before).any(-1)  # [layers, S]
        assert moved[:, :6].any(-1).tolist() == [forwards % each == 0 for each in (12, 6, 3)]
        assert all(moved[layer, 6:].sum() <= 6 for layer, each in ((1, 4), (2, 2)) if forwards % each)
        before = now
    assert turn > 6


@given(seeds, tiers, thresholds)
def test_a_row_of_a_batch_is_the_row_alone(seed, tiers, threshold):
    """Would catch a plan that goes by the longest prompt, or by another row's forwards; of more layers than all strategies are tested with."""
    own = {"prompt_interval_steps": 3, "gen_interval_steps": 2, "tiers": tiers, "threshold": threshold}
    prompts = [random_prompt(seed + row, 3 + 2 * row) for row in range(3)]
    together = run(seed, "mars", *prompts, **own, **DEEP)
    for row, prompt in enumerate(prompts):
        alone = run(seed, "mars", prompt, **own, **DEEP)
        assert answers(together)[row] == answers(alone)[0] and together.forwards[row] == alone.nfe


def test_it_differs_where_it_approximates(monkeypatch):
    """Negative controls: a pyramid changes tokens, and one that stands on its head, whose first layers are refreshed most often, others."""
    own = {"prompt_interval_steps": 3, "gen_interval_steps": 2, "transfer_ratio": 0.1}

    def decoded(name, **settings):
        return [generate(random_model(seed, n_layers=4), random_prompt(seed, 6), name, **own, **settings, **LENGTHS) for seed in range(5)]

    def unlike(some, others):
        return sum(not one.tokens.equal(other.tokens) for one, other in zip(some, others))

    alike, steep = decoded("dllm-cache"), decoded("mars", tiers=3)
    assert unlike(alike, steep) >= 3 and all(one.rows > other.rows for one, other in zip(alike, steep))
    monkeypatch.setattr(strategies.mars, "intervals", lambda *given: intervals(*given)[::-1])
    reversed_ = decoded("mars", tiers=3)
    assert unlike(steep, reversed_) >= 3 and steep[0].rows != reversed_[0].rows


def test_its_memory_is_that_of_dllm_cache():
    """Would catch a check that lets a decode begin which then runs out of memory, and a view that goes with what contradicts it."""
    mine, other = (build(name).view for name in ("mars", "dllm-cache"))
    assert all(trait(mine, name) == trait(other, name) for name in ("memory", "settled", "layers", "shifts"))


def test_what_makes_no_sense_is_refused():
    """Would catch a pyramid on its head that is asked for, one that is silently left out, and tiers without a layer, which skip intervals."""
    refused(random_model(0), "mars", "tiers is 3, expected at most 2, the layers of this model", tiers=3)
    refused(random_model(0), "mars", "tiers is 0, expected between 1 and 16", tiers=0)
    refused(random_model(0), "mars", "gen_interval_steps is 0, expected at least 1", gen_interval_steps=0)
    refused(random_model(0), "dllm-cache", "strategy dllm-cache has no setting tiers: that is a setting of mars", tiers=2)
    assert "mars" in STRATEGIES
