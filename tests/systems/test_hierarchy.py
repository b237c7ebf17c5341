"""Hierarchical decoding: one token in every run of masks."""

from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model, random_prompt
from dllm import decode
from shared import LENGTHS, changed, committed, refused, run, same, seeds
from strategies import build


def test_the_rule_on_the_worked_example():
    """Would catch runs that are joined over a written token, and a best token of each run that is not the surest."""
    loose, strict = (build("hierarchy", low=low, high=high).rule for low, high in ((0.4, 0.9), (0.55, 0.78)))
    assert committed(loose, masked=[0, 1, 2, 4, 5, 7]) == [0, 4, 7]
    assert committed(strict, masked=[0, 1, 2, 4, 5, 7]) == [0, 1, 4]


@given(seeds, st.sampled_from(["none", "dual"]))
def test_an_unreachable_hierarchy_commits_one_token_a_forward(seed, cache):
    """Would catch a rule that commits what is below its thresholds."""
    assert same(run(seed, "hierarchy", high=2.0, low=2.0, cache=cache), run(seed, "fast-dllm", threshold=None, cache=cache))


@given(seeds)
def test_it_halves_the_runs(seed):
    """Would catch a run without a commit: with low = 0 a block of 8 takes between log2(8 + 1) and 8 forwards."""
    for step in decode(random_model(seed), random_prompt(seed, 5), "hierarchy", high=2.0, low=0.0, cache="none", **LENGTHS):
        masks = "".join("x" if c else "." for c in step.candidates[0])
        taken = "".join("!" if c else m for c, m in zip(step.commit[0], masks))
        assert all(run.count("!") == 1 for run in taken.split(".") if run)
    assert 3 * 4 <= step.nfe <= 24


def test_it_differs_from_a_threshold():
    """Negative control: an equality that always holds proves nothing."""
    plain = {"cache": "none", "threshold": 0.5}
    assert changed("fast-dllm", plain, "hierarchy", {"cache": "none", "high": 0.5, "low": 0.1}) >= 3


def test_a_wrong_setting_is_named():
    """Would catch thresholds that are the wrong way round."""
    refused(random_model(0), "hierarchy", "low is 0.8, expected at most high=0.7", low=0.8, high=0.7)
