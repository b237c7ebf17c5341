"""ReMDM: when it takes back, and what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
from dllm import decode
from shared import changed, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.llada import full


@given(seeds, st.sampled_from([24, 9, 3]))
def test_without_more_forwards_it_is_llada(seed, steps):
    """Would catch a rule that takes back anyway, and a quota other than LLaDA's."""
    assert same(run(seed, "remdm", extra=0, steps=steps), run(seed, "llada", steps=steps))


@given(seeds, st.integers(0, 4), st.integers(1, 3), st.sampled_from([24, 12, 6]))
def test_forwards_are_those_of_llada_and_the_extra_ones(seed, extra, number, steps):
    """Would catch a forward too few where the last would fill the block, and one whose commits are more than its quota."""
    assert run(seed, "remdm", extra=extra, number=number, steps=steps).nfe == steps + 3 * extra


@given(seeds, st.sampled_from([1, 2]))
def test_what_goes_was_least_sure_when_it_was_written(seed, number):
    """Would catch confidences of now, or of the first writing only; and seven eighths that are one forward off."""
    doubt: dict[int, float] = {}
    for step in decode(random_model(seed), random_prompt(seed, 5), "remdm", gen_length=8, block_length=8, extra=2, number=number):
        left = {i for i in range(8) if step.x[0, 5 + i] == MASK}
        before = dict(doubt)
        for i in step.candidates[0].nonzero()[:, 0].tolist():
            before[i] = step.scores.doubt[0, i].item()
        if step.nfe in (7, 8):  # so that forwards 8 and 9 find them masked
            made = sorted(before, key=before.get)
            assert len(left) == 1 + number
        doubt = {i: before[i] for i in range(8) if i not in left}
        assert step.nfe in (7, 8) or len(left) == (8 - step.nfe if step.nfe < 7 else 10 - step.nfe)
    assert made and not left


def test_it_differs():
    """Negative control: taking back changes answers, and so does how much."""
    own = {"extra": 4, "number": 2}
    assert changed("remdm", own, "llada", {}) >= 1 and changed("remdm", own, "remdm", own | {"number": 1}) >= 1


@pytest.mark.parametrize("length, number, steps", [(1, 1, 1), (8, 8, 1), (8, 9, 8), (2, 3, 2)])
def test_something_stays_of_what_is_written(length, number, steps):
    """Would catch a forward that takes all back that it has written, and then writes nothing."""
    result = run(0, "remdm", extra=2, number=number, gen_length=length, block_length=length, steps=steps)
    assert MASK not in result.tokens[0].tolist()


def test_what_cannot_be_combined_is_refused():
    """Would catch blocks that share what one remembers."""
    with pytest.raises(ValueError, match="a rule that remembers a block's tokens needs one block at a time"):
        Strategy(build("remdm").rule, full, pipeline(0.1, 0.95))
