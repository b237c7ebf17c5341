"""The network against an independent formula, and the cache against recomputation."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model, random_prompt
from model import Int8Linear, Pass, RMSNorm, remember

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


def test_each_row_may_see_slots_of_its_own(model):
    """Would catch slots of another row, keys in another order than values, and padding that is seen. A mask says the same."""
    ids = torch.tensor([random_prompt(seed, 20) for seed in (0, 1)])
    start, generator = torch.tensor([0, 3]), torch.Generator().manual_seed(0)
    visible = torch.stack([torch.randperm(20, generator=generator)[:9] for _ in range(2)])  # [B, K]
    real = torch.gather(torch.arange(20).expand(2, -1) >= start[:, None], 1, visible)[:, None, None]  # [B, 1, 1, K]
    one, other = model.new_cache(2, 20), model.new_cache(2, 20)
    for cache in (one, other):
        model(ids, cache=cache, start=start)
    own = lambda layer, h: layer._replace(at=layer.at._replace(visible=visible, mask=real.expand(-1, -1, 5, -1))).run(h)  # noqa: E731
    seen = model(ids[:, 4:9], Pass(slice(4, 9), slice(0, 20), layer=own), one, start)
    mask = torch.zeros(2, 1, 1, 20, dtype=torch.bool).scatter(-1, visible[:, None, None], True).expand(-1, -1, 5, -1)
    close(seen, model(ids[:, 4:9], Pass(slice(4, 9), slice(0, 20), mask), other, start))
    close(one.k, other.k)


def test_each_row_may_compute_slots_of_its_own(model):
    """Would catch keys that go to the slots of another row, or one row's that overwrite what they must not."""
    cache = model.new_cache(2, 12)
    cache.k += 1.0
    k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 3, 8)
    slots = torch.tensor([[0, 5, 7], [11, 2, 3]])
    got_k, got_v = remember(cache.of(1), slots, slots.flip(1), None, None, k, v)
    assert got_k.equal(k.flip(2)) and got_v.equal(v.flip(2))
    for row in range(2):
        others = [slot for slot in range(12) if slot not in slots[row]]
        assert cache.k[1, row][:, slots[row]].equal(k[row]) and (cache.k[1, row][:, others] == 1).all()
    assert (cache.k[0] == 1).all() and not cache.v[0].any()


def test_a_row_writes_only_the_keys_that_are_its_own(model):
    """Would catch a row whose keys and values are overwritten because another row computes that position."""
    ids, own = torch.tensor([random_prompt(seed, 10) for seed in (0, 1)]), torch.arange(10)[None] >= torch.tensor([[2], [6]])
    cache = model.new_cache(2, 10)
    model(ids, Pass(slice(0, 10), slice(0, 10)), cache)
    before = cache.k.clone()
    model(ids.flip(0), Pass(slice(0, 10), slice(0, 10), own=own), cache)
    kept = (cache.k == before).all(-1).all(2)  # [layers, B, S]
    assert kept[0].equal(~own) and (~kept[1]).equal(own)


def test_a_system_may_run_a_layer_in_its_own_way():
    """Would catch a layer without its number, its slots or its rows, one that is run twice, and what a system keeps of other rows."""
    model, ids, seen = random_model(0, n_layers=3), torch.tensor([random_prompt(0, 10)] * 2), []
    cache = model.new_cache(2, 10)
    cache.kept = torch.arange(6.0).view(3, 2)

    def step(layer, h):
        seen.append((layer.number, layer.at.rows, h.shape[1], layer.cache.kept.tolist(), layer.block is model.blocks[layer.number]))
        return layer.run(h)

    at = Pass(slice(0, 10), slice(0, 10), rows=slice(4, 7))
    close(model(ids, at._replace(layer=step), cache), model(ids, at, model.new_cache(2, 10)))
    whole = slice(None)
    assert seen == [(0, whole, 10, [0.0, 1.0], True), (1, whole, 10, [2.0, 3.0], True), (2, slice(4, 7), 10, [4.0, 5.0], True)]
    cache.keep(torch.tensor([1]))
    assert cache.kept.tolist() == [[1.0], [3.0], [5.0]] and cache.pick(torch.tensor([0, 0])).kept.shape == (3, 2)


def test_a_norm_is_rounded_before_it_is_scaled():
    """Would catch the other order, which is as good a norm and not LLaDA's: in bfloat16 they differ in the last bit."""
    norm, h = RMSNorm(64, 1e-5).bfloat16(), torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm.weight.data = torch.linspace(0.3, 3.0, 64).bfloat16()
    exact = h.float() / (h.float() ** 2).mean(-1, keepdim=True).add(1e-5).sqrt()
    assert norm(h).equal(exact.bfloat16() * norm.weight) and not norm(h).equal((exact * norm.weight).bfloat16())


def test_8_bits_are_right_to_half_a_step():
    """Would catch a largest weight that does not fit into 8 bits, and turns its sign round."""
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    linear = Int8Linear(weight)
    assert linear.weight.abs().amax(1).tolist() == [127] * 6
    assert ((linear.weight * linear.scale[:, None] - weight).abs() <= linear.scale[:, None] * 0.5001).all()
    close(linear(torch.eye(16)), (linear.weight * linear.scale[:, None]).T)
