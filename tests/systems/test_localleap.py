"""LocalLeap's neighbourhoods."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model
from shared import changed, committed, refused, run, same, seeds
from strategies import build
from strategies.fast_dllm import threshold_rule


def leap(threshold: float, relaxed: float, radius: int):
    return build("localleap", threshold=threshold, relaxed_threshold=relaxed, radius=radius).rule


def test_the_rule_on_the_worked_example():
    """Would catch a change of its meaning; docs/idea.md works it out by hand."""
    assert committed(leap(0.9, 0.65, radius=2)) == [0, 1, 3, 4]


@given(
    st.lists(st.floats(0.01, 0.999), min_size=8, max_size=8), st.sets(st.integers(0, 7), min_size=1),
    st.floats(0.2, 1), st.floats(0, 1), st.integers(0, 9),
)  # fmt: skip
def test_it_equals_a_loop_over_neighbours(confidence, masked, kappa, tau, radius):
    """Would catch anchors among the committed, chains of relaxed tokens, and neighbourhoods that are cut or too wide."""
    tau = min(tau, kappa)
    sure = {i: (1 / (1 + (1 / torch.tensor(confidence[i]) - 1))).item() for i in masked}
    kappa, tau = torch.tensor(kappa).item(), torch.tensor(tau).item()
    anchors = [i for i in masked if sure[i] >= kappa]
    expected = [i for i in sorted(masked) if sure[i] >= (tau if any(abs(i - a) <= radius for a in anchors) else kappa)]
    leaps = committed(leap(kappa, tau, radius), confidence=confidence, masked=masked)
    assert leaps == expected
    assert set(leaps) >= set(committed(threshold_rule(kappa), confidence=confidence, masked=masked))


@given(seeds, st.sampled_from(["none", "prefix", "dual"]), st.sampled_from([0.4, 0.7]))
def test_without_relaxation_it_is_the_plain_threshold(seed, cache, tau):
    """Would catch a neighbourhood that is off by one, or a relaxed threshold that applies elsewhere."""
    plain = run(seed, "fast-dllm", cache=cache, threshold=tau)
    alike = run(seed, "localleap", cache=cache, threshold=tau, relaxed_threshold=tau, radius=3)
    # with radius 0 a neighbourhood is the anchor itself, which passes anyway
    assert same(plain, alike, run(seed, "localleap", cache=cache, threshold=tau, relaxed_threshold=0.1, radius=0))


def test_it_differs_from_a_threshold():
    """Negative control for the test above."""
    plain = {"cache": "none", "threshold": 0.7}
    assert changed("localleap", plain | {"relaxed_threshold": 0.2}, "fast-dllm", plain) >= 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"radius": -1}, "radius is -1, expected at least 0"),
        ({"relaxed_threshold": 0.95}, "relaxed_threshold is 0.95, expected at most threshold=0.9"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "localleap", message, **settings)
    refused(random_model(0), "llada", "strategy llada has no setting radius: that is a setting of localleap", radius=2)
