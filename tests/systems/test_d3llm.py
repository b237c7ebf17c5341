"""d3LLM: entropy in a pipeline, and blocks that are kept when they have settled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
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
    plain = run(seed, "llada", remasking="entropy", eos="stop")
    assert same(run(seed, "d3llm", theta=0.0, block_add_threshold=1.0, decoded_token_threshold=1.0, refresh=1), plain)


@given(seeds)
def test_what_refreshes_always_is_no_cache(seed):
    """Would catch a cached path that differs in more than staleness."""
    prompts = [random_prompt(seed, 9), random_prompt(seed + 1, 4)]
    schedule = pipeline(0.1, 0.5, first_only=True)
    plain = Strategy(build("d3llm", **PIPE).rule, full, schedule, eos="stop", order=ORDERS["entropy"])
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
        whole = number % refresh == 0 or any(wait < delay for wait in waits)
        assert step.rows == (30 if whole else 24 - 8 * sum(wait > delay for wait in waits))
        for block in range(3):
            if filled[block] is None and not (step.x[0, 6 + 8 * block : 14 + 8 * block] == MASK).any():
                filled[block] = number + 1


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
    for schedule in (serial, pipeline(0.1, 0.5)):
        with pytest.raises(ValueError, match="needs the pipeline of d3LLM"):
            Strategy(threshold_rule(0.9), view, schedule)
    Strategy(threshold_rule(0.9), view, build("d3llm").schedule)  # the control
