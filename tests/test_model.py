"""The network against an independent formula, and the cache against recomputation."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model, random_prompt
from model import Pass, remember, rope_table, rotate

close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)  # logits are about 10; rounding depends on the shapes


def formula(model, ids: list[int]) -> torch.Tensor:
    """LLaDA's architecture written out in float64 with loops over heads and positions, sharing nothing with model.py but the weights."""
    c, w = model.config, {name: weight.double() for name, weight in model.named_parameters()}
    S, D = len(ids), c.d_model // c.n_heads

    def norm(h, weight):
        return torch.stack([row / math.sqrt((row**2).sum() / len(row) + c.rms_norm_eps) for row in h]) * weight

    def turned(vector, position):
        out = vector.clone()
        for j in range(D // 2):
            angle = position * c.rope_theta ** (-2 * j / D)
            out[j] = vector[j] * math.cos(angle) - vector[j + D // 2] * math.sin(angle)
            out[j + D // 2] = vector[j + D // 2] * math.cos(angle) + vector[j] * math.sin(angle)
        return out

    h = torch.stack([w["wte.weight"][i] for i in ids])
    for layer in range(c.n_layers):
        b = {name.split(".", 2)[2]: weight for name, weight in w.items() if name.startswith(f"blocks.{layer}.")}
        n = norm(h, b["attn_norm.weight"])
        heads = []
        for head in range(c.n_heads):
            shared = head // (c.n_heads // c.kv_heads)
            q = n @ b["q_proj.weight"][head * D : (head + 1) * D].T
            k = n @ b["k_proj.weight"][shared * D : (shared + 1) * D].T
            v = n @ b["v_proj.weight"][shared * D : (shared + 1) * D].T
            q = torch.stack([turned(q[i], i) for i in range(S)])
            k = torch.stack([turned(k[i], i) for i in range(S)])
            heads.append(torch.softmax(q @ k.T / math.sqrt(D), dim=-1) @ v)
        h = h + torch.cat(heads, dim=-1) @ b["attn_out.weight"].T
        n = norm(h, b["ff_norm.weight"])
        gate = n @ b["ff_proj.weight"].T
        h = h + (gate / (1 + torch.exp(-gate)) * (n @ b["up_proj.weight"].T)) @ b["ff_out.weight"].T
    return norm(h, w["ln_f.weight"]) @ w["ff_out.weight"].T


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_an_independent_float64_formula(seed, n_kv_heads):
    """Would catch a wrong rotation layout, norm order, gate, head grouping or scale."""
    model, ids = random_model(seed, n_kv_heads=n_kv_heads), random_prompt(seed, 13)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # norms of 1 would hide a missing multiplication
                weight.add_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)))
        difference = model(torch.tensor([ids]))[0] - formula(model, ids)
    assert difference.abs().max() < 2e-5 * formula(model, ids).abs().max()


@given(seed=st.integers(0, 99), first=st.integers(0, 11), length=st.integers(1, 8), kv=st.sampled_from([1, 4]))
def test_recomputing_a_span_against_the_cache_gives_the_full_forward(seed, first, length, kv):
    """Would catch K/V written to the wrong slots, or queries rotated to the wrong positions."""
    model, ids = random_model(seed, n_kv_heads=kv), torch.tensor([random_prompt(seed, 20), random_prompt(seed + 1, 20)])
    cache = model.new_cache(2, 20)
    whole = model(ids, cache=cache)
    span = slice(first, first + length)
    again = model(ids[:, span], Pass(span, slice(0, 20), rows=slice(1, None)), cache)
    close(again, whole[:, span][:, 1:])


def test_a_cache_slot_that_is_stale_changes_the_logits(model):
    """Negative control: if attention ignored the cache, the test above would pass for the wrong reason."""
    ids = torch.tensor([random_prompt(0, 20)])
    cache = model.new_cache(1, 20)
    before = model(ids, cache=cache)
    edited = ids.clone()
    edited[0, 3] += 1
    model(edited, cache=cache)
    again = model(ids[:, 10:], Pass(slice(10, 20), slice(0, 20)), cache)
    assert (again - before[:, 10:]).abs().max() > 1e-3


def test_slots_may_be_given_as_a_list_of_positions(model):
    """Would catch a gap in the visible slots (a pruned suffix) that shifts the positions behind it."""
    ids = torch.tensor([random_prompt(0, 20)])
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 6, 19])
    sparse = model(ids[:, kept], Pass(kept))
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:, kept] = True
    close(sparse, model(ids, Pass(mask=mask))[:, kept])
    cache = model.new_cache(1, 20)
    model(ids[:, kept], Pass(kept, kept), cache)
    close(model(ids[:, 4:6], Pass(slice(4, 6), kept), cache), sparse[:, 4:6])


@given(seed=st.integers(0, 99), padding=st.integers(1, 7))
def test_left_padding_changes_no_logit(seed, padding):
    """Would catch padding that is attended to, or that shifts positions."""
    model, ids = random_model(seed), random_prompt(seed, 12)
    alone = model(torch.tensor([ids]))
    padded = model(torch.tensor([[5] * padding + ids, random_prompt(seed, 12 + padding)]), start=torch.tensor([padding, 0]))
    close(padded[:1, padding:], alone)


def test_what_is_added_is_added_to_the_embeddings(model):
    """Would catch an addition in another place or to other rows: with the difference to another token's embedding it is that token."""
    ids, other = torch.tensor([random_prompt(0, 10)]), torch.tensor([random_prompt(1, 10)])
    close(model(ids[:, 2:7], Pass(slice(2, 7)), added=(model.wte(other) - model.wte(ids))[:, 2:7]), model(other[:, 2:7], Pass(slice(2, 7))))


def test_a_layer_that_is_skipped_is_not_there():
    """Would catch a layer that is computed anyway, another one that is left out, and rows that the last layer would have cut out."""
    model, ids = random_model(0, n_layers=3), torch.tensor([random_prompt(0, 10)])
    part = random_model(0, n_layers=3)
    del part.blocks[1]
    close(model(ids, Pass(skip=[1])), part(ids))
    nothing = model.ff_out(model.ln_f(model.wte(ids)))
    close(model(ids, Pass(skip=range(3), rows=slice(4, 7))), nothing[:, 4:7])
    cache = model.new_cache(1, 10)
    model(ids, Pass(skip=[0, 2]), cache)
    assert all(slots[1].any() and not slots[[0, 2]].any() for slots in (cache.k, cache.v))


def test_a_mask_hides_slots(model):
    """Would catch a mask that is ignored or transposed: under a causal one, later tokens must not matter to earlier logits."""
    ids = torch.tensor([random_prompt(0, 10)])
    causal = torch.ones(10, 10, dtype=torch.bool).tril()
    edited = ids.clone()
    edited[0, 6:] += 1
    close(model(ids, Pass(mask=causal))[:, :6], model(edited, Pass(mask=causal))[:, :6])
    assert not torch.allclose(model(ids)[:, :6], model(edited)[:, :6])


def test_bfloat16_follows_float32(model):
    """Would catch an operation that does not run, or runs in another dtype, under bfloat16."""
    ids = torch.tensor([random_prompt(0, 20)])
    exact = model(ids)
    rounded = model.bfloat16()(ids)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.1 * exact.std()


def test_each_layer_and_row_may_see_slots_of_its_own(model):
    """Would catch slots of another layer or row, keys in another order than values, and padding that is seen. A mask says the same."""
    ids = torch.tensor([random_prompt(seed, 20) for seed in (0, 1)])
    start, whole = torch.tensor([0, 3]), slice(0, 20)
    visible = torch.stack([torch.stack([torch.randperm(20)[:9] for _ in range(2)]) for _ in range(2)])  # [layers, B, K]
    one, other = model.new_cache(2, 20), model.new_cache(2, 20)
    for cache in (one, other):
        model(ids, cache=cache, start=start)
    seen = model(ids[:, 4:9], Pass(slice(4, 9), visible), one, start)
    masks = torch.zeros(2, 2, 1, 1, 20, dtype=torch.bool).scatter(-1, visible[:, :, None, None], True) & (
        torch.arange(20) >= start[:, None, None, None]
    )
    positions = torch.arange(4, 9) - start[:, None]
    rope, h = rope_table(positions, 8, model.config.rope_theta), model.wte(ids[:, 4:9])
    for layer, block in enumerate(model.blocks):
        h = block(
            h,
            rope,
            masks[layer].expand(-1, -1, 5, -1),
            functools.partial(remember, other.of(layer), slice(4, 9), whole, None, None),
            slice(None),
        )
    close(seen, model.ff_out(model.ln_f(h)))


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_demand_is_the_product_of_the_mean_query_with_each_key(n_kv_heads):
    """Would catch a mean over the wrong queries, a softmax, a scale, and heads that are paired wrongly: Sparse-dLLM's score in loops."""
    model, ids = random_model(3, n_kv_heads=n_kv_heads), torch.tensor([random_prompt(0, 12)])
    cache = model.new_cache(1, 12)
    model(ids, Pass(rows=slice(5, 8), measure=True), cache)
    block = model.blocks[0]
    rope, n = rope_table(torch.arange(12), 8, model.config.rope_theta), block.attn_norm(model.wte(ids))
    q, k = (rotate(block.split(x, heads), *rope)[0] for x, heads in ((block.q_proj(n), 4), (block.k_proj(n), n_kv_heads)))
    for slot in range(12):
        products = [q[head, 5:8].mean(0) @ k[head // (4 // n_kv_heads), slot] for head in range(4)]
        close(cache.demand[0, 0, slot], torch.stack(products).mean())
    assert cache.demand[1].abs().max() > 0


def renewed_in_loops(model, cache, ids, first, count, start):
    """The definition of `renew`: compute every layer everywhere, and keep what is chosen. cache: K, V and added, lists over the layers."""
    slots = range(start, len(cache["k"][0]))
    h, rope = model.wte(ids[start:]), rope_table(torch.arange(start, len(ids)), 8, model.config.rope_theta)
    for layer, block in enumerate(model.blocks):
        old, n = {name: tensors[layer] for name, tensors in cache.items()}, block.attn_norm(h)
        k, v = (
            rotate(block.split(block.k_proj(n)[None], 4), *rope)[0].transpose(0, 1),
            block.split(block.v_proj(n)[None], 4)[0].transpose(0, 1),
        )
        alike = [round(torch.cosine_similarity(v[i].flatten(), old["v"][slot].flatten(), dim=0).item(), 4) for i, slot in enumerate(slots)]
        others = sorted(range(first, len(h)), key=lambda i: (alike[i], i))
        chosen = {*range(first), *others[:count]} if layer else range(len(h))
        for i, slot in enumerate(slots):
            old["v"][slot] = v[i]
            if i in chosen:
                old["k"][slot] = k[i]
        every = block(h[None], rope, None, lambda *_: (old["k"].transpose(0, 1)[None], old["v"].transpose(0, 1)[None]), slice(None))[0]
        for i, slot in enumerate(slots):
            if i in chosen:
                old["added"][slot] = every[i] - h[i]
        h = torch.stack([every[i] if i in chosen else h[i] + old["added"][slot] for i, slot in enumerate(slots)])
    return model.ff_out(model.ln_f(h))


@given(seed=st.integers(0, 99), with_prompt=st.booleans(), count=st.integers(0, 14))
def test_layers_that_are_renewed_in_part_equal_the_definition(seed, with_prompt, count):
    """Would catch features of other slots, keys that are renewed where they must not be, values that are not, and a stale last layer."""
    model, ids = random_model(seed, n_layers=3), torch.tensor(random_prompt(seed, 20))
    cache, plain = (
        model.new_cache(1, 20, features=True),
        {name: torch.zeros(3, 20, 4, 8) for name in "kv"} | {"added": torch.zeros(3, 20, 32)},
    )
    start, first = (0, 6) if with_prompt else (6, 0)
    for turn, (begin, a, n) in enumerate([(0, 6, 14), (start, first, count), (start, first, count)]):
        ids[6 + 3 * turn : 8 + 3 * turn] = torch.tensor(random_prompt(seed + turn, 2))
        logits = model(ids[None, begin:], Pass(slice(begin, 20), slice(0, 20), rows=slice(-12, -3), renew=(a, n)), cache)[0]
        close(logits, renewed_in_loops(model, plain, ids, a, n, begin)[-12:-3])


def test_features_that_are_not_renewed_stay_but_for_the_values(model):
    """Would catch rho = 0 that renews keys or what a layer adds, or that keeps values: only the first layer is computed."""
    ids = torch.tensor([random_prompt(0, 20)])
    cache = model.new_cache(1, 20, features=True)
    model(ids, Pass(slice(0, 20), slice(0, 20), renew=(6, 14)), cache)
    k, v, added = cache.k.clone(), cache.v.clone(), cache.added.clone()
    ids[0, 9] += 1
    model(ids[:, 6:], Pass(slice(6, 20), slice(0, 20), renew=(0, 0)), cache)
    assert cache.k[1].equal(k[1]) and cache.added[1].equal(added[1]) and not cache.v[1].equal(v[1]) and not cache.added[0].equal(added[0])
    assert cache.k[:, :, :, :6].equal(k[:, :, :, :6]) and cache.v[:, :, :, :6].equal(v[:, :, :, :6])
