"""dInfer's combination: each of its parts switched off gives the others."""

import inspect

from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model
from shared import CACHES, changed, refused, run, same, seeds
from strategies import STRATEGIES

STILL = {"weight": 0.0, "growth": 0.0, "fall": None}  # nothing is softened, and nothing sinks


@given(seeds, st.sampled_from(CACHES))
def test_without_runs_and_credit_it_is_smoothing(seed, cache):
    """Would catch a rule, a threshold or a weight that is not smoothing's own."""
    own = {"cache": cache, "fall": 0.1}
    assert same(run(seed, "dinfer", high=0.6, low=None, **own), run(seed, "smoothing", threshold=0.6, **own))


@given(seeds, st.sampled_from(CACHES))
def test_without_softening_it_is_hierarchy(seed, cache):
    """Would catch another threshold for runs, or one that sinks unasked."""
    own = {"high": 0.7, "low": 0.3, "cache": cache}
    assert same(run(seed, "dinfer", **own, **STILL), run(seed, "hierarchy", **own))


@given(seeds)
def test_without_runs_and_softening_it_is_credit(seed):
    """Would catch credit that is counted otherwise."""
    own = {"alpha": 1.0, "gamma": 0.5, "beta": 0.5, "cache": "prefix"}
    assert same(run(seed, "dinfer", high=0.6, low=None, **own, **STILL), run(seed, "credit", threshold=0.6, **own))


def test_each_part_changes_something():
    """Negative control for the three tests above."""
    all_of_it = {"high": 0.6, "low": 0.3, "alpha": 1.0, "cache": "none", "fall": 0.1}
    for without in ({"low": None}, {"alpha": 0.0}, {"weight": 0.0, "growth": 0.0}, {"fall": None}):
        assert changed("dinfer", all_of_it, "dinfer", all_of_it | without) >= 2


def test_its_high_threshold_sinks():
    """Would catch a first forward that writes more than one token of each run, where `high` is 1."""
    low, high = ({"high": 0.3, "low": 0.3, "cache": "none", "fall": fall} for fall in (1.0, None))
    assert changed("dinfer", low, "dinfer", high) >= 3


def test_its_defaults_are_those_of_its_parts():
    """Would catch a default that is changed in one of two places."""
    default = lambda name: {p.name: p.default for p in inspect.signature(STRATEGIES[name]).parameters.values()}
    mine = default("dinfer")
    for name, own in (("credit", ["gamma", "beta"]), ("hierarchy", ["high", "low"]), ("smoothing", ["weight", "growth", "fall"])):
        if name in STRATEGIES:
            assert {key: mine[key] for key in own} == {key: default(name)[key] for key in own}


def test_what_makes_no_sense_is_refused():
    """Would catch thresholds that contradict each other, and sides of a cache that has none."""
    refused(random_model(0), "dinfer", "low is 0.9, expected at most high=0.5", low=0.9, high=0.5)
    refused(random_model(0), "dinfer", "prefix_look is 4, expected none unless cache is vicinity", prefix_look=4, cache="dual")
