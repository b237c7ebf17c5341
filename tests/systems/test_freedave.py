"""FreeDave: the chain of drafts that test_drafts.py tests, and how long it is."""

from hypothesis import given
from hypothesis import strategies as st

from shared import CACHES, run, seeds


@given(seeds, st.sampled_from([1, 2, 4, 8]), st.sampled_from(CACHES), st.sampled_from([None, 0.6]))
def test_freedave_is_lossless(seed, depth, cache, threshold):
    """Would catch logits of another canvas, or of a cache that a draft has written to; depth 1 must not even save a forward."""
    drafted = run(seed, "freedave", depth=depth, cache=cache, threshold=threshold)
    plain = run(seed, "fast-dllm", cache=cache, threshold=threshold)
    assert drafted.tokens.equal(plain.tokens) and drafted.nfe <= plain.nfe and (depth > 1 or drafted.nfe == plain.nfe)


def test_each_canvas_more_saves_forwards():
    """Negative control for the test above: with a depth that is not asked for, or drafts that are never right, nothing is saved."""
    nfe = [sum(run(seed, "freedave", depth=depth).nfe for seed in range(8)) for depth in (1, 2, 4)]
    assert nfe[0] == 8 * 24 > nfe[1] > nfe[2]
