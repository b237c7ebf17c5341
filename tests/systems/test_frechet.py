"""Fast-dLLM++: Frechet's bounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import CONFIDENCE, changed, committed, run, same, seeds
from strategies import build
from strategies.fast_dllm import factor_rule

confidences = st.lists(st.floats(0.01, 0.999), min_size=8, max_size=8)
some = st.sets(st.integers(0, 7), min_size=1)
bound = lambda margin: build("frechet", margin=margin).rule


def test_the_rule_on_the_worked_example():
    """Would catch a change of its meaning: errors 0.05, 0.08, 0.20 sum to 0.33, with the last once more to 0.53."""
    assert committed(bound(0.46)) == [0, 1, 3] and committed(bound(0.48)) == [0, 3] and committed(bound(0.8)) == [0]


@given(confidences, some, st.floats(0, 1))
def test_it_is_the_longest_run_whose_bounds_stay_apart(confidence, masked, margin):
    """Would catch a last error that counts once, and one that counts for all (Fast-dLLM's factor)."""
    order = sorted(masked, key=lambda i: -torch.tensor(confidence[i]).item())
    c = [confidence[i] for i in order]
    score = [sum(c[:n]) - (n - 1) - (1 - c[n - 1]) for n in range(1, len(c) + 1)]
    if all(abs(s - margin) > 1e-5 for s in score):
        assert committed(bound(margin), confidence=confidence, masked=masked) == sorted(order[: sum(s > margin for s in score)])


@given(confidences, some, st.floats(0, 0.9))
def test_it_accepts_what_the_factor_accepts(confidence, masked, margin):
    """Would catch a bound that is not the looser one; both are the same where all are equally sure."""
    equal = [confidence[0]] * 8
    mine, theirs = (set(committed(rule, confidence=confidence, masked=masked)) for rule in (bound(margin), factor_rule(1 - margin - 1e-4)))
    assert theirs <= mine
    sizes = [len(committed(rule, confidence=equal, masked=masked)) for rule in (bound(margin), factor_rule(1 - margin))]
    assert sizes[0] == sizes[1] or any(abs((n + 1) * (1 - equal[0]) - (1 - margin)) < 1e-4 for n in range(1, 9))
    assert len(committed(bound(0.46), confidence=CONFIDENCE)) > len(committed(factor_rule(0.54), confidence=CONFIDENCE))  # control


@given(seeds)
def test_a_margin_of_one_commits_one_token_a_forward(seed):
    """Would catch a bound that lets the first in by itself."""
    assert same(run(seed, "frechet", margin=1.0, cache="none"), run(seed, "llada"))


def test_it_differs_from_a_threshold_and_a_wrong_setting_is_named():
    """Negative control for the test above."""
    assert changed("frechet", {"margin": 0.1, "cache": "none"}, "llada", {}) >= 3
    with pytest.raises(ValueError, match="margin is 1.5, expected between 0 and 1"):
        run(0, "frechet", margin=1.5)
