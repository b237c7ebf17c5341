"""What the cache policies promise: each against the equality that defines it, and a control that shows where it approximates."""

import dataclasses
import math

import pytest
import torch
from conftest import MASK, random_model, random_prompt
from hypothesis import given
from hypothesis import strategies as st
from test_dllm import LENGTHS, answers, run, same, seeds
from test_related import changed

import dllm
import related
from dllm import Pass, Strategy, decode, scored
from lab.oracle import Oracle

# --- Sparse-dLLM


def dual_from_the_second_forward(s, window) -> Pass:
    """Fast-dLLM's dual cache, refreshed in a block's first two forwards instead of its first."""
    S = s.x.shape[1]
    first, end = (0, S) if window.age < 2 else (window.start, window.end)
    return Pass(slice(first, end), slice(0, S), rows=scored(window, first))


@given(seeds, st.sampled_from([None, 0.6]), st.sampled_from([0.0, 0.7]))
def test_sparse_that_keeps_everything_is_a_dual_cache_frozen_one_forward_late(seed, threshold, cfg_scale):
    """Would catch slots that are lost, seen twice or taken from the forward before; in a batch with padding, and under guidance."""
    prompts, rule = (
        [random_prompt(seed, 9), random_prompt(seed + 1, 4)],
        dllm.quota if threshold is None else dllm.threshold_rule(threshold),
    )
    dense = run(seed, Strategy(rule, dual_from_the_second_forward, dllm.serial), *prompts, cfg_scale=cfg_scale)
    assert same(dense, run(seed, "sparse", *prompts, keep_ratio=1.0, threshold=threshold, cfg_scale=cfg_scale))


@given(seeds, st.sampled_from([0.0, 0.3, 0.5, 0.7]), st.integers(1, 5))
def test_sparse_keeps_a_share_of_what_is_outside_the_block(seed, keep_ratio, kernel_size):
    """Would catch a share of another total, such as one that counts the padding or the block: floor(r (L - B)) slots, and the block itself."""
    lengths = (9, 4)
    for step in decode(
        random_model(seed),
        [random_prompt(seed, length) for length in lengths],
        "sparse",
        keep_ratio=keep_ratio,
        kernel_size=kernel_size,
        **LENGTHS,
    ):
        if step.window.age < 2:
            assert step.at.visible == slice(0, 33) and step.rows == 33 * len(step.window.live)
            continue
        assert step.rows == 8 * len(step.window.live)
        for layer in step.at.visible:
            for row, slots in zip(step.window.live.tolist(), layer.tolist()):
                real = [slot for slot in slots if slot >= 9 - lengths[row]]
                assert len(real) == len(set(real)) == int(keep_ratio * (lengths[row] + 24 - 8)) + 8
                assert set(range(step.window.start, step.window.end)) <= set(real)


def test_sparse_keeps_what_was_asked_for_most():
    """Would catch an order that is turned round, pooling over the block's own slots, and layers that share a choice. Eight slots, block 3 and 4."""
    canvas = dllm.Canvas(random_model(0), [[1, 2, 3]], dllm.build("sparse"), dllm.Settings(gen_length=5, block_length=1))
    canvas.cache = canvas.model.new_cache(1, 8)
    canvas.cache.demand[:] = torch.tensor([[[1.0, 5, 0, 99, 99, 2, 4, 3]], [[6.0, 0, 1, 99, 99, 2, 3, 0]]])
    window = dllm.Window(3, 5, 2, 3, 3, None, torch.ones(1, 1, dtype=torch.bool), canvas.live, canvas.turns)
    assert related.evicting(0.5, 1)(canvas, window).visible[:, 0].tolist() == [[1, 3, 4, 6, 7], [0, 3, 4, 5, 6]]
    # the slots outside are 0 1 2 5 6 7; with their neighbours they count 5 5 5 4 4 4 and 6 6 2 3 3 3, and slot 2 stands beside slot 5
    assert related.evicting(0.5, 3)(canvas, window).visible[:, 0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 3, 4, 5]]


def test_sparse_layers_and_rows_choose_for_themselves():
    """Negative control for the tests above: one choice for all would pass them."""
    prompts = [random_prompt(0, 12), random_prompt(1, 12)]
    passes = [s.at for s in decode(random_model(0), prompts, "sparse", **LENGTHS) if s.window.age > 1]
    assert all(not at.visible[0].equal(at.visible[1]) and not at.visible[:, 0].equal(at.visible[:, 1]) for at in passes)


@given(seeds, st.sampled_from([0.0, 0.7]))
def test_drafts_over_sparse_are_lossless(seed, cfg_scale):
    """Would catch drafts of a forward that evicts, whose keys would be those of a copy, and drafts that see another row's slots."""
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    view = related.evicting(0.4, 3)
    plain, drafted = (
        run(seed, Strategy(dllm.quota, view, dllm.serial, ahead=ahead), *prompts, cfg_scale=cfg_scale)
        for ahead in (None, related.Drafts(related.chain(4)))
    )
    assert plain.tokens.equal(drafted.tokens) and all(a >= b for a, b in zip(plain.forwards, drafted.forwards))


# --- d3LLM's cache

PIPE = {"theta": 1.0, "decoded_token_threshold": 0.5}


@given(seeds)
def test_d3llm_that_refreshes_always_is_no_cache(seed):
    """Would catch a cached path that differs in more than staleness."""
    prompts = [random_prompt(seed, 9), random_prompt(seed + 1, 4)]
    schedule = dllm.pipeline(0.1, 0.5, first_only=True)
    plain = Strategy(related.entropy_rule(1.0), dllm.full, schedule, eos="stop", remasking="entropy")
    assert same(run(seed, plain, *prompts), run(seed, "d3llm", *prompts, delay=0, refresh=1, **PIPE))


@given(seeds, st.sampled_from([0, 1, 3]))
def test_one_layer_makes_the_cache_of_d3llm_exact(seed, delay):
    """Would catch a block that is kept as it was before its last token: in the first layer K/V depend on nothing but the token and its place."""
    prompts = [random_prompt(seed, 9), random_prompt(seed + 1, 4)]
    fresh, kept = (run(seed, "d3llm", *prompts, layers=1, delay=delay, refresh=refresh, eos="fill", **PIPE) for refresh in (1, 10000))
    assert same(fresh, kept) and kept.rows < fresh.rows


@given(seeds, st.sampled_from([0, 1, 3]), st.sampled_from([1, 4, 10000]))
def test_d3llm_keeps_a_block_when_it_has_settled(seed, delay, refresh):
    """Would catch a block that is kept a forward too early or too late, and one behind the first mask: rows are counted here in plain loops."""
    full = [None] * 3  # the forward after which each block was full
    steps = decode(random_model(seed), random_prompt(seed, 6), "d3llm", delay=delay, refresh=refresh, eos="fill", **PIPE, **LENGTHS)
    for number, step in enumerate(steps):
        leading = full[: full.index(None)] if None in full else full
        waits = [number - max(leading[: i + 1]) for i in range(len(leading))]  # forwards that saw it full and everything before it
        whole = number % refresh == 0 or any(wait < delay for wait in waits)
        assert step.rows == (30 if whole else 24 - 8 * sum(wait > delay for wait in waits))
        for block in range(3):
            if full[block] is None and not (step.x[0, 6 + 8 * block : 14 + 8 * block] == MASK).any():
                full[block] = number + 1


@given(seeds)
def test_d3llm_opens_a_block_after_its_predecessor_has_begun(seed):
    """Would catch a block that is open while the one before it is still all masks, and open blocks with a gap between them."""
    x = [MASK] * 24
    for step in decode(random_model(seed), random_prompt(seed, 6), "d3llm", **PIPE, **LENGTHS):
        opened = range(0, step.window.end - 6, 8)
        assert all(any(t != MASK for t in x[start - 8 : start]) for start in opened[1:])
        assert step.candidates[0].tolist() == [t == MASK for t in x[step.window.start - 6 : step.window.end - 6]]
        x = step.x[0, 6:].tolist()


# --- dKV-Cache with prefill


@given(seeds, st.sampled_from([1, 4]))
def test_dkv_with_prefill_computes_the_prompt_once(seed, refresh):
    """Would catch a refresh that takes the prompt along, in later blocks, too."""
    steps = list(decode(random_model(seed), random_prompt(seed, 6), "dkv", refresh=refresh, prefill=True, **LENGTHS))
    slots = [torch.arange(30)[step.at.query] for step in steps]
    assert slots[0].tolist() == list(range(30)) and all(query.min() >= 6 for query in slots[1:])
    assert refresh > 1 or all(step.rows == 24 for step in steps[1:])
    assert all(step.rows == 24 for step in steps[1:] if step.window.age < 2 or step.window.age % refresh == 0)


@given(seeds, st.sampled_from([1, 3]))
def test_one_layer_makes_prefill_exact(seed, refresh):
    """Would catch a prompt that is not seen."""
    assert same(*(run(seed, "dkv", layers=1, refresh=refresh, prefill=prefill) for prefill in (False, True)))


# --- dLLM-Cache


@given(seeds, st.sampled_from([None, 0.6]))
def test_dllm_cache_that_refreshes_always_is_no_cache(seed, threshold):
    """Would catch a layer that is not the network's, and logits of other rows than the block's."""
    cached = run(seed, "dllm-cache", prompt_interval_steps=1, gen_interval_steps=1, threshold=threshold)
    assert same(cached, run(seed, "fast-dllm", cache="none", threshold=threshold))


@given(seeds, st.sampled_from([2, 3, 5, 99]))
def test_dllm_cache_that_transfers_everything_is_no_cache(seed, interval):
    """Would catch values or keys that are left out when all are recomputed; K_p = 1 and rho = 1 for any K_r."""
    cached = run(seed, "dllm-cache", prompt_interval_steps=1, gen_interval_steps=interval, transfer_ratio=1.0)
    assert same(cached, run(seed, "llada"))


def test_rows_of_dllm_cache_are_those_it_computes():
    """Would catch a count of positions that are only compared: the first of two layers computes the query, the second a quarter of the answer."""
    steps = decode(random_model(1), random_prompt(1, 6), "dllm-cache", prompt_interval_steps=4, gen_interval_steps=3, **LENGTHS)
    computed = [step.rows for step in steps][:8]
    whole, both, part = 30, (30 + 12) / 2, (24 + 6) / 2
    assert computed == [whole, part, part, 24, both, part, 24, part]  # forward 4 has the prompt, and a quarter of the answer


# --- all of them


@given(seeds, st.sampled_from(["evicting", "partly", "delayed"]))
def test_views_that_are_refreshed_in_every_forward_equal_none(seed, name):
    """Would catch an approximation beyond staleness."""
    fresh = {"evicting": related.evicting(0.5, 3), "partly": related.partly(25, 5, 0.25), "delayed": related.delayed(8)}[name]

    def always(s, window):
        return fresh(s, dataclasses.replace(window, age=0))

    always = dllm.has(features=True)(always)  # which only dLLM-Cache's needs
    assert same(run(seed, Strategy(dllm.quota, always, dllm.serial)), run(seed, "llada"))


def test_the_caches_differ_where_they_approximate():
    """Negative controls: at ordinary settings each of these changes some tokens."""
    assert changed("sparse", {"keep_ratio": 0.5}, "sparse", {"keep_ratio": 1.0}) >= 4
    assert changed("sparse", {"keep_ratio": 1.0}, "fast-dllm", {"cache": "dual", "threshold": None}) >= 4
    assert changed("d3llm", PIPE | {"refresh": 1}, "d3llm", PIPE | {"delay": 0}) >= 4
    assert changed("d3llm", PIPE | {"delay": 1}, "d3llm", PIPE | {"delay": 0}) >= 2
    assert changed("dkv", {}, "dkv", {"prefill": True}) >= 4
    assert changed("dllm-cache", {}, "llada", {}) >= 4
    assert changed("dllm-cache", {"transfer_ratio": 0.0}, "dllm-cache", {"transfer_ratio": 0.5}) >= 4


def test_what_a_cache_cannot_be_combined_with_is_refused():
    """Would catch a combination that runs and is wrong, and one that is refused although it is right."""
    pipe = dllm.pipeline(0.1, 0.95)
    for view in (related.evicting(0.5, 3), related.partly(25, 5, 0.25), related.delayed(8)):
        with pytest.raises(ValueError, match="pipelined blocks need a view without stale slots, or one that is refreshed by"):
            Strategy(dllm.threshold_rule(0.9), view, pipe)
    with pytest.raises(ValueError, match="needs pipelined blocks"):
        Strategy(dllm.threshold_rule(0.9), related.settling(1, 4), dllm.serial)
    with pytest.raises(ValueError, match="drafts need one block at a time"):
        Strategy(dllm.quota, related.partly(25, 5, 0.25), dllm.serial, ahead=related.Drafts(related.chain(4)))
    with pytest.raises(ValueError, match="contradicts a cache"):
        Strategy(related.editing(0.9, 0.9), related.partly(25, 5, 0.25), dllm.serial)
    for rule in (related.editing(0.6, 0.4), related.Saber(2, 8)):  # which change nothing outside the block
        assert MASK not in answers(run(3, Strategy(rule, related.evicting(0.5, 3), dllm.serial)))[0]
    for name, setting in (("sparse", "keep_ratio"), ("dllm-cache", "transfer_ratio")):
        with pytest.raises(ValueError, match=f"{setting} is 1.5, expected between 0 and 1"):
            dllm.build(name, **{setting: 1.5})


@pytest.mark.parametrize("strategy", ["sparse", "dllm-cache", "d3llm", "dkv"])
def test_an_oracle_can_be_decoded_with_any_cache(strategy):
    """Would catch an oracle that lacks a part of the network's interface; its block is recomputed as a whole, so that it stays right."""
    oracle = Oracle("brackets-8")
    settings = {"gen_interval_steps": 1} if strategy == "dllm-cache" else {}
    result = dllm.generate(oracle, [oracle.encode_chat([])] * 9, strategy, gen_length=8, block_length=8, temperature=1.0, **settings)
    assert oracle.contains(result.tokens[:, 1:]).all() or strategy == "d3llm"  # which writes several at once


def test_memory_of_features_is_counted():
    """Would catch a check that lets a decode begin which then runs out of memory: a third more slots where heads are as wide as the model."""
    asked = {}
    for name in ("llada", "dllm-cache"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dllm, "check_memory", lambda what, bytes, device: asked.update({name: bytes}))
            dllm.prepare(random_model(0), [1], name, {"gen_length": 16, "block_length": 8})
    assert asked["dllm-cache"] - asked["llada"] == 17 * 2 * 32 * 4 and math.isfinite(asked["llada"])
