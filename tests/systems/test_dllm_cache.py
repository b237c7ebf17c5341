"""dLLM-Cache: layers that are computed in part, against their definition in loops."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dllm
from conftest import random_model, random_prompt
from dllm import decode
from model import Pass, rope_table, rotate
from shared import LENGTHS, changed, refused, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.dllm_cache import partly
from strategies.fast_dllm import threshold_rule
from strategies.llada import full, serial

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@given(seeds, st.sampled_from([None, 0.6]))
def test_what_refreshes_always_is_no_cache(seed, threshold):
    """Would catch a layer that is not the network's, and logits of other rows than the block's; by its settings, and by new windows."""
    cached = run(seed, "dllm-cache", prompt_interval_steps=1, gen_interval_steps=1, threshold=threshold)
    assert same(cached, run(seed, "fast-dllm", cache="none", threshold=threshold))
    view = build("dllm-cache").view
    always = lambda s, window: view(s, dataclasses.replace(window, age=0))
    rule = threshold_rule(0.6)
    assert same(run(seed, Strategy(rule, always, serial)), run(seed, Strategy(rule, full, serial)))


@given(seeds, st.sampled_from([2, 3, 5, 99]))
def test_what_transfers_everything_is_no_cache(seed, interval):
    """Would catch values or keys that are left out when all are recomputed; K_p = 1 and rho = 1 for any K_r."""
    cached = run(seed, "dllm-cache", prompt_interval_steps=1, gen_interval_steps=interval, transfer_ratio=1.0)
    assert same(cached, run(seed, "llada"))


def test_rows_are_those_it_computes():
    """Would catch a count of positions that are only compared: of two layers the first computes all, the second a quarter of the answer."""
    steps = decode(random_model(1), random_prompt(1, 6), "dllm-cache", prompt_interval_steps=4, gen_interval_steps=3, **LENGTHS)
    computed = [step.rows for step in steps][:8]
    whole, both, part = 30, (30 + 12) / 2, (24 + 6) / 2
    assert computed == [whole, part, part, 24, both, part, 24, part]  # forward 4 has the prompt, and a quarter of the answer


@pytest.mark.parametrize("steps", [24, 12, 48])
def test_forwards_count_over_the_whole_decode(steps):
    """Would catch intervals that begin anew in each block, where a quota says how many forwards that has: with blocks of 8 and K_p 50
    the prompt would be refreshed in each. Under a threshold they do begin anew: rows of a batch take different numbers of forwards."""
    intervals = {"prompt_interval_steps": 5, "gen_interval_steps": 7}
    took = list(decode(random_model(1), random_prompt(1, 6), "dllm-cache", steps=steps, **intervals, **LENGTHS))
    assert len(took) == min(steps, 24)
    for forwards, step in enumerate(took):
        assert (step.at.query.start == 0) == (forwards % 5 == 0)
        assert (step.at.cost == (24 if step.at.query.start else 30) * 2) == (forwards % 7 == 0)
    for step in decode(random_model(1), random_prompt(1, 6), "dllm-cache", threshold=0.5, **intervals, **LENGTHS):
        assert (step.at.query.start == 0) == (step.window.age % 5 == 0)


def renewed_in_loops(model, cache, ids, plan, start):
    """The definition of `partly`: compute every layer everywhere, and keep what is chosen. cache: K, V and added, lists over the layers."""
    slots, head = range(start, len(cache["k"][0])), max(first for first, _ in plan)
    h, rope = model.wte(ids[start:]), rope_table(torch.arange(start, len(ids)), 8, model.config.rope_theta)
    for layer, block in enumerate(model.blocks):
        old, n = {name: tensors[layer] for name, tensors in cache.items()}, block.attn_norm(h)
        k = rotate(block.split(block.k_proj(n)[None], 4), *rope)[0].transpose(0, 1)
        v = block.split(block.v_proj(n)[None], 4)[0].transpose(0, 1)
        alike = [round(torch.cosine_similarity(v[i].flatten(), old["v"][slot].flatten(), dim=0).item(), 4) for i, slot in enumerate(slots)]
        first, count = plan[layer]
        chosen = {*range(first), *sorted(range(head, len(h)), key=lambda i: (alike[i], i))[:count]}
        for i, slot in enumerate(slots):
            if first or i >= head:
                old["v"][slot] = v[i]
            if i in chosen:
                old["k"][slot] = k[i]
        every = block(h[None], rope, None, lambda *_: (old["k"].transpose(0, 1)[None], old["v"].transpose(0, 1)[None]), slice(None))[0]
        for i, slot in enumerate(slots):
            if i in chosen:
                old["added"][slot] = every[i] - h[i]
        h = torch.stack([every[i] if i in chosen else h[i] + old["added"][slot] for i, slot in enumerate(slots)])
    return model.ff_out(model.ln_f(h))


WHOLE = [(6, 14)] * 3


def cache_of(model):
    cache = model.new_cache(1, 20)
    cache.added = torch.zeros(model.config.n_layers, 1, 20, 32)
    return cache


PLAN = st.tuples(*[st.tuples(st.sampled_from([0, 6]), st.integers(0, 14))] * 3)  # the prompt or not, and of the answer, in each layer


@given(seed=st.integers(0, 99), plans=st.tuples(PLAN, PLAN))
def test_layers_that_are_renewed_in_part_equal_the_definition(seed, plans):
    """Would catch features of other slots, keys that are renewed where they must not be, values that are not, a stale last layer, and a
    layer that computes, or reads, what another does: each has a plan of its own."""
    model, ids = random_model(seed, n_layers=3), torch.tensor(random_prompt(seed, 20))
    cache, plain = cache_of(model), {name: torch.zeros(3, 20, 4, 8) for name in "kv"} | {"added": torch.zeros(3, 20, 32)}
    for turn, plan in enumerate([WHOLE, *plans]):
        begin = 6 - max(plan)[0]
        ids[6 + 3 * turn : 8 + 3 * turn] = torch.tensor(random_prompt(seed + turn, 2))
        at = Pass(slice(begin, 20), slice(0, 20), rows=slice(-12, -3), layer=partial(partly, plan, True))
        close(model(ids[None, begin:], at, cache)[0], renewed_in_loops(model, plain, ids, plan, begin)[-12:-3])


@pytest.mark.parametrize("renew", [True, False])
def test_what_is_not_renewed_stays_but_for_the_values(renew):
    """Would catch a share of none that renews keys or what a layer adds, or keeps values: only the first layer is computed. With rho = 0
    the authors keep the values, too."""
    model, ids = random_model(0), torch.tensor([random_prompt(0, 20)])
    cache = cache_of(model)
    model(ids, Pass(slice(0, 20), slice(0, 20), layer=partial(partly, WHOLE, True)), cache)
    k, v, added = cache.k.clone(), cache.v.clone(), cache.added.clone()
    ids[0, 9] += 1
    model(ids[:, 6:], Pass(slice(6, 20), slice(0, 20), layer=partial(partly, [(0, 14), (0, 0)], renew)), cache)
    assert (
        cache.k[1].equal(k[1]) and cache.added[1].equal(added[1]) and cache.v[1].equal(v[1]) != renew and not cache.added[0].equal(added[0])
    )
    assert cache.k[:, :, :, :6].equal(k[:, :, :, :6]) and cache.v[:, :, :, :6].equal(v[:, :, :, :6])


def test_only_a_share_of_none_keeps_the_values():
    """Would catch a strategy that renews values with rho = 0, or, where rho is small, none."""
    for share in (0.0, 0.01):
        step = next(decode(random_model(0), [1, 2, 3], "dllm-cache", transfer_ratio=share, **LENGTHS))
        assert step.at.layer.args[1] == (share > 0)


def test_it_differs_where_it_approximates():
    """Negative controls: at ordinary settings each of these changes some tokens."""
    assert changed("dllm-cache", {}, "llada", {}) >= 3
    assert changed("dllm-cache", {"transfer_ratio": 0.0}, "dllm-cache", {"transfer_ratio": 0.5}) >= 3


def test_memory_of_what_layers_add_is_counted(monkeypatch):
    """Would catch a check that lets a decode begin which then runs out of memory: a third more where heads are as wide as the model."""
    asked = {}
    for name in ("llada", "dllm-cache"):
        monkeypatch.setattr(dllm, "check_memory", lambda what, bytes, device: asked.update({name: bytes}))
        dllm.prepare(random_model(0), [1], name, {"gen_length": 16, "block_length": 8})
    assert asked["dllm-cache"] - asked["llada"] == 17 * 2 * 32 * 4 and math.isfinite(asked["llada"])


def test_what_makes_no_sense_is_refused():
    """Would catch a combination that runs and is wrong."""
    with pytest.raises(ValueError, match="pipelined blocks need a view that never asks for the age of a block"):
        Strategy(threshold_rule(0.9), build("dllm-cache").view, pipeline(0.1, 0.95))
    refused(random_model(0), "dllm-cache", "transfer_ratio is 1.5, expected between 0 and 1", transfer_ratio=1.5)
