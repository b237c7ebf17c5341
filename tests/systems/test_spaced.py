"""The filter of DUS."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model
from kernels import Scores
from shared import changed, refused, run, same, seeds
from strategies.fast_dllm import threshold_rule
from strategies.spaced import apart


@given(
    st.lists(st.floats(0.01, 0.99), min_size=12, max_size=12, unique=True), st.sets(st.integers(0, 11), min_size=1),
    st.floats(0, 1), st.integers(0, 12),
)  # fmt: skip
def test_it_equals_a_loop_over_the_surest(confidence, masked, threshold, stride):
    """Would catch a gap of a fixed width, a gap of 1, and cells that keep others away though they were not taken."""
    doubt = 1 / torch.tensor([confidence]) - 1
    candidates = torch.tensor([[i in masked for i in range(12)]])
    sure, kept = (1 / (1 + doubt))[0].tolist(), []
    gap = max(2, len(masked) * stride // 12) if stride else 1
    for i in sorted(masked, key=lambda i: doubt[0, i].item()):
        if sure[i] >= torch.tensor(threshold).item() and all(abs(i - j) >= gap for j in kept):
            kept.append(i)
    got = apart(threshold_rule(threshold), stride)(Scores(torch.zeros(1, 12), doubt), candidates, None) & candidates
    assert got[0].nonzero()[:, 0].tolist() == sorted(kept)


@given(seeds, st.sampled_from(["none", "dual"]))
def test_a_stride_of_zero_is_the_rule_itself(seed, cache):
    """Would catch a filter that always filters."""
    assert same(run(seed, "spaced", threshold=0.5, stride=0, cache=cache), run(seed, "fast-dllm", threshold=0.5, cache=cache))
    assert same(run(seed, "spaced", gamma=2.0, stride=0, cache=cache), run(seed, "eb", gamma=2.0, cache=cache))


def test_it_differs_and_a_wrong_setting_is_named():
    """Negative control for the tests above."""
    assert changed("spaced", {"threshold": 0.3, "stride": 8}, "spaced", {"threshold": 0.3, "stride": 0}) >= 3
    refused(random_model(0), "spaced", "threshold is None, expected a number, unless gamma is given", threshold=None)
    refused(random_model(0), "spaced", "threshold=0.5 and gamma=1 are two rules", threshold=0.5, gamma=1.0)
