"""Saber: a threshold at the mean so far, and tokens that are taken back."""

import pytest
from hypothesis import given

from conftest import MASK, random_model, random_prompt
from dllm import decode, generate
from shared import LENGTHS, again, answers, changed, run, seeds, views
from strategies import Strategy
from strategies.d2f import pipeline
from strategies.llada import full, serial
from strategies.saber import Saber
from test_goldens import checkpoints


@given(seeds)
def test_it_takes_back_fewer_than_it_commits(seed):
    """Would catch a decode that does not end: every forward leaves fewer masks than it found."""
    before = 24
    for step in decode(random_model(seed), random_prompt(seed, 5), "saber", **LENGTHS):
        left = int((step.x[:, 5:] == MASK).sum())
        assert left < before
        before = left
    assert left == 0


@given(seeds)
def test_a_full_block_takes_nothing_back(seed):
    """Would catch a forward that takes tokens back from a block that it has filled."""
    for step in decode(random_model(seed), random_prompt(seed, 5), "saber", n=4, mu=1, **LENGTHS):
        left, back = step.candidates & ~step.commit, step.commit & (step.token == MASK)
        assert left.any() or not back.any()


def test_it_fills_a_block_of_two_in_one_forward():
    """Would catch a last token that is taken back: the smallest case, by the authors' code one forward."""
    model = checkpoints.plain()
    assert generate(model, [27, 11], "saber", gen_length=2, block_length=2).nfe == 1


@given(seeds)
def test_what_was_taken_back_counts_in_the_mean(seed):
    """Would catch a mean over those tokens only that stand now: it is over all that were ever committed in the block."""
    chosen: dict[int, float] = {}
    for step in decode(random_model(seed), random_prompt(seed, 5), "saber", n=1, mu=1, **LENGTHS):
        chosen = {} if step.window.age == 0 else chosen
        mean = sum(chosen.values()) / len(chosen) if chosen else 1.0
        sure = {i: step.scores.confidence[0, i].item() for i in step.candidates[0].nonzero()[:, 0].tolist()}
        above = {i for i, c in sure.items() if c > mean}
        taken = above or {max(sure, key=sure.get)}
        written = {int(i) for i in (step.commit & step.candidates & (step.token != MASK))[0].nonzero()}
        assert written <= taken or any(abs(c - mean) < 1e-5 for c in sure.values())
        chosen |= {i: sure[i] for i in taken}


def test_it_does_take_back():
    """Negative control for the test above, and mu = 0, which never does."""
    backs = [
        sum(int((step.token[step.commit] == MASK).sum()) for step in decode(random_model(seed), [1, 2, 3], "saber", mu=mu, **LENGTHS))
        for seed in range(8)
        for mu in (8, 0)
    ]
    assert sum(back > 0 for back in backs[::2]) >= 4 and not any(backs[1::2])
    assert changed("llada", {}, "saber", {}) >= 3


@given(seeds)
def test_without_backtracking_it_is_a_threshold_at_the_mean_so_far(seed):
    """Would catch a mean over other tokens than those committed in this block, or over confidences of another forward."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    chosen: dict[int, float] = {}
    for step in decode(model, prompt, "saber", n=1, mu=0, **LENGTHS):
        if step.window.age == 0:
            chosen = {}
        mean = sum(chosen.values()) / len(chosen) if chosen else 1.0
        sure = {i: step.scores.confidence[0, i].item() for i in step.candidates[0].nonzero()[:, 0].tolist()}
        expected = [i for i, c in sure.items() if c > mean + 1e-6] or [max(sure, key=sure.get)]
        near = any(abs(c - mean) < 1e-5 for c in sure.values())
        got = step.commit[0].nonzero()[:, 0].tolist()
        assert got == expected or near
        chosen |= {i: sure[i] for i in got}


@given(seeds)
def test_what_is_taken_back_has_lost_most_since_the_forward_before(seed):
    """Would catch a loss that is counted from the start of the block, or from when the token was written."""
    last: dict[int, float] = {}
    for step in decode(random_model(seed), random_prompt(seed, 5), "saber", n=3, mu=2, **LENGTHS):
        last = {} if step.window.age == 0 else last
        sure = dict(enumerate(step.scores.confidence[0].tolist()))
        back = {int(i) for i in (step.commit & (step.token == MASK))[0].nonzero()}
        stay = {i for i in range(8) if step.x[0, step.window.start + i] != MASK and not step.candidates[0, i]}
        loss = {i: last.get(i, 0.0) - sure[i] for i in range(8)}
        # a token is only taken back where it has lost more than each that was written before, and stays
        assert all(loss[i] >= loss[j] - 1e-6 for i in back for j in stay)
        last = sure


def test_its_memory_is_that_of_one_decode():
    """Would catch state that leaks from one decode into the next when a Strategy is used twice."""
    mine = Strategy(Saber(2, 8), full, serial)
    assert answers(again(3, mine)) == answers(again(3, mine))
    for prompts in ([[1, 2, 3]], [[1, 2, 3], [4, 5]]):
        assert answers(again(3, mine, *prompts))[0] == answers(again(3, mine, [1, 2, 3]))[0]


def test_what_cannot_be_combined_is_refused():
    """Would catch a combination that runs and is wrong."""
    with pytest.raises(ValueError, match="needs one block at a time"):
        Strategy(Saber(2, 8), full, pipeline(0.1, 0.95))
    for name, view in views("dkv", "dllm-cache", "sparse").items():
        if name in ("dkv", "dllm-cache"):
            with pytest.raises(ValueError, match="contradicts a cache"):
                Strategy(Saber(2, 8), view, serial)
        else:  # which changes nothing outside the block
            assert MASK not in answers(run(3, Strategy(Saber(2, 8), view, serial)))[0]
