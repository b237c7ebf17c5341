"""Sparse-dLLM: what each layer and each row keeps."""

import dataclasses
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model, random_prompt
from dllm import Canvas, Settings, stream
from model import Pass, rope_table, rotate
from shared import LENGTHS, changed, refused, run, same, seeds
from strategies import Strategy, Window, build
from strategies.d2f import pipeline
from strategies.fast_dllm import threshold_rule
from strategies.llada import quota, serial
from strategies.sparse import measuring

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


def dual_from_the_second_forward(s, window) -> Pass:
    """Fast-dLLM's dual cache, refreshed in a block's first two forwards instead of its first."""
    first, end = (0, s.x.shape[1]) if window.age < 2 else (window.start, window.end)
    return Pass(slice(first, end), slice(0, s.x.shape[1]))


@given(seeds, st.sampled_from([None, 0.6]), st.sampled_from([0.0, 0.7]))
def test_what_keeps_everything_is_a_dual_cache_frozen_one_forward_late(seed, threshold, cfg_scale):
    """Would catch slots that are lost, seen twice or taken from the forward before; in a batch with padding, and under guidance."""
    prompts, rule = [random_prompt(seed, 9), random_prompt(seed + 1, 4)], threshold_rule(threshold)
    dense = run(seed, Strategy(rule, dual_from_the_second_forward, serial), *prompts, cfg_scale=cfg_scale)
    assert same(dense, run(seed, "sparse", *prompts, keep_ratio=1.0, threshold=threshold, cfg_scale=cfg_scale))


def followed(prompts, seed: int, **settings):
    """The steps of a decode, each with the slots int64 [layers, B, K] that its forward saw; None where it saw all."""
    canvas = Canvas(random_model(seed), prompts, build("sparse", **settings), Settings(**LENGTHS, temperature=0.0))
    seen, view = [], canvas.strategy.view

    def noted(s, window):
        at = view(s, window)
        seen.append(s.cache.kept.clone() if window.age > 1 else None)
        return at

    canvas.strategy = dataclasses.replace(canvas.strategy, view=noted)
    return [(step, seen[-1]) for step in stream(canvas)]


@given(seeds, st.sampled_from([0.0, 0.3, 0.5, 0.7]), st.integers(1, 5))
def test_it_keeps_a_share_of_what_is_outside_the_block(seed, keep_ratio, kernel_size):
    """Would catch a share of another total, such as one with the padding or the block: floor(r (L - B)) slots, and the block itself."""
    lengths = (9, 4)
    prompts = [random_prompt(seed, length) for length in lengths]
    for step, kept in followed(prompts, seed, keep_ratio=keep_ratio, kernel_size=kernel_size):
        assert step.at.visible == slice(0, 33)
        if kept is None:
            assert step.rows == 33 * len(step.window.live)
            continue
        assert step.rows == 8 * len(step.window.live)
        for layer in kept:
            for row, slots in zip(step.window.live.tolist(), layer.tolist()):
                real = [slot for slot in slots if slot >= 9 - lengths[row]]
                assert len(real) == len(set(real)) == int(keep_ratio * (lengths[row] + 24 - 8)) + 8
                assert set(range(step.window.start, step.window.end)) <= set(real)


def test_what_is_not_kept_is_not_seen():
    """Negative control for the test above: keys and values of the kept slots decide, those of all others do not."""
    canvas = Canvas(random_model(0), [random_prompt(0, 9)], build("sparse", keep_ratio=0.3), Settings(**LENGTHS, temperature=0.0))
    S, window = 33, lambda age: Window(9, 17, age, 9, 16, 8, torch.ones(1, 1, dtype=torch.bool), canvas.live, canvas.forwards)
    for age in (0, 1):
        canvas.forward(window(age), canvas.strategy.view(canvas, window(age)))
    at = canvas.strategy.view(canvas, window(2))
    before = canvas.forward(window(2), at)
    kept = canvas.cache.kept[:, 0]
    for layer in range(2):  # of which the second sees other slots than the first
        others = torch.ones(S, dtype=torch.bool).index_fill(0, kept[layer], False)
        canvas.cache.v[layer, :, :, others] = 100.0
    close(canvas.forward(window(2), at), before)
    canvas.cache.v[0, :, :, kept[0, 0]] += 1.0
    assert (canvas.forward(window(2), at) - before).abs().max() > 1e-2


def test_it_keeps_what_was_asked_for_most():
    """Would catch an order that is turned round, pooling over the block's own slots, and a shared choice. Eight slots, block 3 and 4."""

    def kept(kernel_size):
        strategy = build("sparse", keep_ratio=0.5, kernel_size=kernel_size)
        canvas = Canvas(random_model(0), [[1, 2, 3]], strategy, Settings(gen_length=5, block_length=1))
        canvas.open_cache().demand = torch.tensor([[[1.0, 5, 0, 99, 99, 2, 4, 3]], [[6.0, 0, 1, 99, 99, 2, 3, 0]]])
        window = Window(3, 5, 2, 3, 3, None, torch.ones(1, 1, dtype=torch.bool), canvas.live, canvas.forwards)
        canvas.strategy.view(canvas, window)
        return canvas.cache.kept[:, 0].tolist()

    assert kept(1) == [[1, 3, 4, 6, 7], [0, 3, 4, 5, 6]]
    # the slots outside are 0 1 2 5 6 7; with their neighbours they count 5 5 5 4 4 4 and 6 6 2 3 3 3, and slot 2 stands beside slot 5
    assert kept(3) == [[0, 1, 2, 3, 4], [0, 1, 3, 4, 5]]


def test_layers_and_rows_choose_for_themselves():
    """Negative control for the tests above: one choice for all would pass them."""
    prompts = [random_prompt(0, 12), random_prompt(1, 12)]
    slots = [kept for _, kept in followed(prompts, 0) if kept is not None]
    assert all(not kept[0].equal(kept[1]) and not kept[:, 0].equal(kept[:, 1]) for kept in slots)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_demand_is_the_product_of_the_mean_query_with_each_key(n_kv_heads):
    """Would catch a mean over the wrong queries, a softmax, a scale, and heads that are paired wrongly: Sparse-dLLM's score in loops."""
    model, ids = random_model(3, n_kv_heads=n_kv_heads), torch.tensor([random_prompt(0, 12)])
    cache = model.new_cache(1, 12)
    cache.demand = torch.zeros(2, 1, 12)
    model(ids, Pass(slice(0, 12), slice(0, 12), rows=slice(5, 8), layer=partial(measuring, slice(5, 8))), cache)
    block = model.blocks[0]
    rope, n = rope_table(torch.arange(12), 8, model.config.rope_theta), block.attn_norm(model.wte(ids))
    q, k = (rotate(block.split(x, heads), *rope)[0] for x, heads in ((block.q_proj(n), 4), (block.k_proj(n), n_kv_heads)))
    for slot in range(12):
        products = [q[head, 5:8].mean(0) @ k[head // (4 // n_kv_heads), slot] for head in range(4)]
        close(cache.demand[0, 0, slot], torch.stack(products).mean())
    assert cache.demand[1].abs().max() > 0


@given(seeds)
def test_what_is_refreshed_in_every_forward_equals_none(seed):
    """Would catch an approximation beyond staleness."""
    evicting = build("sparse").view
    always = lambda s, window: evicting(s, dataclasses.replace(window, age=0))
    assert same(run(seed, Strategy(quota, always, serial)), run(seed, "llada"))


def test_it_differs_where_it_approximates():
    """Negative controls: at ordinary settings each of these changes some tokens."""
    assert changed("sparse", {"keep_ratio": 0.5}, "sparse", {"keep_ratio": 1.0}) >= 3
    assert changed("sparse", {"keep_ratio": 1.0}, "fast-dllm", {"cache": "dual", "threshold": None}) >= 3


def test_what_makes_no_sense_is_refused():
    """Would catch a combination that runs and is wrong."""
    with pytest.raises(ValueError, match="pipelined blocks need a view that never asks for the age of a block"):
        Strategy(threshold_rule(0.9), build("sparse").view, pipeline(0.1, 0.95))
    refused(random_model(0), "sparse", "keep_ratio is 1.5, expected between 0 and 1", keep_ratio=1.5)
