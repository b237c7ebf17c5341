"""d3LLM: entropy in a pipeline, and blocks that are kept when they have settled."""

import copy
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, MASK, random_model, random_prompt
from dllm import decode
from shared import LENGTHS, changed, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.fast_dllm import threshold_rule
from strategies.llada import ORDERS, full, serial

PIPE = {"theta": 1.0, "decoded_token_threshold": 0.5}


@given(seeds)
def test_one_block_at_a_time_is_entropy_order(seed):
    """Would catch a pipeline that opens or commits too early."""
    plain = run(seed, "llada", remasking="entropy")
    assert same(run(seed, "d3llm", theta=0.0, block_add_threshold=1.0, decoded_token_threshold=1.0, refresh=1, eos="fill"), plain)


@given(seeds)
def test_what_refreshes_always_is_no_cache(seed):
    """Would catch a cached path that differs in more than staleness."""
    prompts = [random_prompt(seed, 9), random_prompt(seed + 1, 4)]
    d3llm = build("d3llm", **PIPE)
    plain = Strategy(d3llm.rule, full, d3llm.schedule, eos="stop", order=ORDERS["entropy"])
    assert same(run(seed, plain, *prompts), run(seed, "d3llm", *prompts, delay=0, refresh=1, **PIPE))


@given(seeds, st.sampled_from([0, 1, 3]))
def test_one_layer_makes_its_cache_exact(seed, delay):
    """Would catch a block that is kept as it was before its last token: the first layer's K/V depend on the token and its place alone."""
    prompts = [random_prompt(seed, 9), random_prompt(seed + 1, 4)]
    fresh, kept = (run(seed, "d3llm", *prompts, layers=1, delay=delay, refresh=refresh, eos="fill", **PIPE) for refresh in (1, 10000))
    assert same(fresh, kept) and kept.rows < fresh.rows


@given(seeds, st.sampled_from([0, 1, 3]), st.sampled_from([1, 4, 10000]))
def test_it_keeps_a_block_when_it_has_settled(seed, delay, refresh):
    """Would catch a block that is kept a forward too early or too late, or behind the first mask: rows are counted in plain loops."""
    filled = [None] * 3  # the forward after which each block was full
    steps = decode(random_model(seed), random_prompt(seed, 6), "d3llm", delay=delay, refresh=refresh, eos="fill", **PIPE, **LENGTHS)
    for number, step in enumerate(steps):
        leading = filled[: filled.index(None)] if None in filled else filled
        waits = [number - max(leading[: i + 1]) for i in range(len(leading))]  # forwards that saw it full and everything before it
        # forwards count from 1: the refreshes are forwards r, 2r, 3r, ...
        whole = number == 0 or (number + 1) % refresh == 0 or any(wait < delay for wait in waits)
        assert step.rows == (30 if whole else 24 - 8 * sum(wait > delay for wait in waits))
        for block in range(3):
            if filled[block] is None and not (step.x[0, 6 + 8 * block : 14 + 8 * block] == MASK).any():
                filled[block] = number + 1


@given(seeds, st.sampled_from([1, 2]))
def test_everything_behind_an_end_ends_at_once(seed, second):
    """Would catch open blocks that are finished behind an EOS, a row that goes on when all before its end is written, and an end in the
    prompt; with a second end token, too."""
    model = copy.copy(random_model(seed % 4))
    model.config = dataclasses.replace(model.config, end_token_ids=(seed % 30 + 1,) * (second - 1))
    for step in decode(model, random_prompt(seed, 5), "d3llm", **PIPE, **LENGTHS):
        answer = step.x[0, 5:].tolist()
        first = next((i for i, token in enumerate(answer) if token in model.config.ends), 24)
        assert answer[first + 1 :] == [EOS] * (23 - first)
    assert MASK not in answer


def test_ends_do_come_before_other_blocks_are_full():
    """Negative control for the test above: under D2F's stop the same decodes leave text behind an end."""
    d3llm, text = build("d3llm", **PIPE), 0
    slow = Strategy(d3llm.rule, full, pipeline(0.1, 0.5, first_only=True), eos="stop", order=ORDERS["entropy"])
    for seed in range(24):
        answer = run(seed, slow).tokens[0, -24:].tolist()
        text += EOS in answer and set(answer[answer.index(EOS) :]) != {EOS}
    assert text >= 2


def test_a_threshold_of_zero_opens_two_blocks_at_first():
    """Would catch a pipeline that has not opened its first block before it looks whether to open the next, as the authors' has."""
    opened = [next(decode(random_model(0), [1, 2, 3], "d3llm", block_add_threshold=share, **LENGTHS)).window for share in (0.0, 0.1)]
    assert [window.end - window.start for window in opened] == [16, 8]


@given(seeds)
def test_a_block_opens_after_its_predecessor_has_begun(seed):
    """Would catch a block that is open while the one before it is still all masks, and open blocks with a gap between them."""
    x = [MASK] * 24
    for step in decode(random_model(seed), random_prompt(seed, 6), "d3llm", **PIPE, **LENGTHS):
        opened = range(0, step.window.end - 6, 8)
        assert all(any(t != MASK for t in x[start - 8 : start]) for start in opened[1:])
        assert step.candidates[0].tolist() == [t == MASK for t in x[step.window.start - 6 : step.window.end - 6]]
        x = step.x[0, 6:].tolist()


def test_it_differs_where_it_approximates():
    """Negative controls: at ordinary settings each of these changes some tokens."""
    assert changed("d3llm", {"theta": 1.0}, "llada", {"remasking": "entropy", "eos": "stop"}) >= 3
    assert changed("d3llm", PIPE | {"refresh": 1}, "d3llm", PIPE | {"delay": 0}) >= 3
    assert changed("d3llm", PIPE | {"delay": 1}, "d3llm", PIPE | {"delay": 0}) >= 1


def test_what_cannot_be_combined_is_refused():
    """Would catch a combination that runs and is wrong."""
    view = build("d3llm", delay=1, refresh=4).view
    for schedule, message in ((serial, "needs the pipeline of d3LLM"), (pipeline(0.1, 0.5), "pipelined blocks need a view")):
        with pytest.raises(ValueError, match=message):
            Strategy(threshold_rule(0.9), view, schedule)
    Strategy(threshold_rule(0.9), view, build("d3llm").schedule)  # the control
