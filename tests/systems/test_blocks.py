"""What block diffusion models share: who sees whom, an exact cache for all of them, sub-blocks, and blocks in flight."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model, random_prompt
from dllm import decode
from shared import LENGTHS, answers, run, same, seeds
from strategies import Strategy
from strategies.blocks import blocks_of, context_mask, in_blocks
from strategies.d2f import block_causal
from strategies.fast_dllm import threshold_rule
from strategies.llada import serial

contexts, shifts = st.sampled_from(["block", "token", "causal"]), st.sampled_from([0, 1])


def blocks(context="block", shift=0, parts=1, cached=True, threshold=0.5, **own) -> Strategy:
    return in_blocks(blocks_of(context, parts, cached), threshold, shift=shift, **own)


def test_what_finished_tokens_see():
    """Would catch a prompt that sees less than itself, or more. P = 2, blocks of 2: the first row is the prompt's."""
    seen = {context: context_mask(2, 2, context, 0, 4).int().tolist() for context in ("block", "token", "causal")}
    assert seen["block"] == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert seen["token"] == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert seen["causal"] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@given(
    seeds,
    contexts,
    shifts,
    st.sampled_from([(8, 1), (4, 2), (2, 4), (3, 2)]),
    st.sampled_from([None, 0.0, 0.5]),
    st.sampled_from([0.3, 0.6]),
)
def test_the_cache_is_exact(seed, context, shift, parts, add, threshold):
    """Would catch keys and values that are kept from when a block was open or its sub-block was, and a row before the block that is
    computed under another mask than finished text: of a padded batch of two, in which one waits for the other."""
    (length, n), prompts = parts, [random_prompt(seed, 9), random_prompt(seed + 1, 4)]
    made = [blocks(context, shift, n, cached, threshold, add=add, block_length=length) for cached in (True, False)]
    cached, uncached = (run(seed, strategy, *prompts, block_length=length) for strategy in made)
    assert same(cached, uncached) and (cached.rows < uncached.rows or cached.nfe == 1)


def test_keeping_what_is_not_final_is_found_out():
    """Negative control for the test above: K/V of a finished block as they were when it was open, not computed once more."""
    off, differ = lambda view: lambda s, window: view(s, replace(window, final=window.start if window.final else 0)), 0
    for seed in range(6):
        exact = blocks("causal", 1)
        stale = replace(exact, view=off(exact.view))
        differ += not run(seed, stale).tokens.equal(run(seed, exact).tokens)
    assert differ >= 3


@given(seeds)
def test_the_context_of_blocks_is_that_of_d2f(seed):
    """Would catch a mask of its own for what is said already."""
    plain = Strategy(threshold_rule(0.5), block_causal(), serial, eos="stop")
    mine, theirs = run(seed, blocks()), run(seed, plain)
    assert same(mine, theirs) and mine.rows == theirs.rows


@given(seeds, contexts, shifts)
def test_one_block_in_flight_is_one_after_the_other(seed, context, shift):
    """Would catch a pipeline that opens too early, and a view that asks the schedule more than which blocks are open."""
    assert same(run(seed, blocks(context, shift)), run(seed, blocks(context, shift, add=1.0)))


def test_each_switch_changes_tokens():
    """Negative controls: what a finished token sees, where logits stand, how long a block is, parts of a block, several in flight."""
    base = {"context": "causal", "shift": 1}
    for other in ({"context": "token"}, {"context": "block"}, {"shift": 0}, {"add": 0.2}, {"parts": 2, "block_length": 4}):
        pairs = [
            (run(seed, blocks(**base)), run(seed, blocks(**base | other), block_length=other.get("block_length", 8))) for seed in range(6)
        ]
        assert sum(answers(one) != answers(two) for one, two in pairs) >= 3, other
    short = [run(seed, blocks(**base, block_length=4), block_length=4) for seed in range(6)]
    parts = [run(seed, blocks(**base, parts=2, block_length=4), block_length=4) for seed in range(6)]
    assert sum(answers(one) != answers(two) for one, two in zip(short, parts)) >= 3


@pytest.mark.parametrize("shift", [0, 1])
def test_a_sub_block_is_written_before_the_next_is_opened_and_all_of_the_block_is_seen(shift):
    """Would catch parts that are written in any order, and parts that are blocks."""
    strategy = blocks("causal", shift, 2, threshold=0.3, block_length=4)
    for step in decode(random_model(3), [1, 2, 3], strategy, **LENGTHS | {"block_length": 4}):
        assert step.window.end - step.window.start == 4
        block = (step.window.start - 3) // 8
        assert step.at.query.stop == 3 + (block + 1) * 8 and step.at.mask[..., -1, :].all()
        assert step.at.query.start <= step.window.start - shift
