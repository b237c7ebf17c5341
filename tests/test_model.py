"""The network against an independent formula, and the cache against recomputation."""

import functools
import math

import pytest
import torch
from conftest import random_model, random_prompt
from hypothesis import given
from hypothesis import strategies as st

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
    again = model(ids[:, span], span, slice(0, 20), cache=cache, rows=slice(1, None))
    close(again, whole[:, span][:, 1:])


def test_a_cache_slot_that_is_stale_changes_the_logits(model):
    """Negative control: if attention ignored the cache, the test above would pass for the wrong reason."""
    ids = torch.tensor([random_prompt(0, 20)])
    cache = model.new_cache(1, 20)
    before = model(ids, cache=cache)
    edited = ids.clone()
    edited[0, 3] += 1
    model(edited, cache=cache)
    again = model(ids[:, 10:], slice(10, 20), slice(0, 20), cache=cache)
    assert (again - before[:, 10:]).abs().max() > 1e-3


def test_slots_may_be_given_as_a_list_of_positions(model):
    """Would catch a gap in the visible slots (a pruned suffix) that shifts the positions behind it."""
    ids = torch.tensor([random_prompt(0, 20)])
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 6, 19])
    sparse = model(ids[:, kept], kept)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:, kept] = True
    close(sparse, model(ids, mask=mask)[:, kept])
    cache = model.new_cache(1, 20)
    model(ids[:, kept], kept, kept, cache=cache)
    close(model(ids[:, 4:6], slice(4, 6), kept, cache=cache), sparse[:, 4:6])


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
    close(model(ids[:, 2:7], slice(2, 7), added=(model.wte(other) - model.wte(ids))[:, 2:7]), model(other[:, 2:7], slice(2, 7)))


def test_a_layer_that_is_skipped_is_not_there():
    """Would catch a layer that is computed anyway, another one that is left out, and rows that the last layer would have cut out."""
    model, ids = random_model(0, n_layers=3), torch.tensor([random_prompt(0, 10)])
    part = random_model(0, n_layers=3)
    del part.blocks[1]
    close(model(ids, skip=[1]), part(ids))
    nothing = model.ff_out(model.ln_f(model.wte(ids)))
    close(model(ids, skip=range(3), rows=slice(4, 7)), nothing[:, 4:7])
    cache = model.new_cache(1, 10)
    model(ids, cache=cache, skip=[0, 2])
    assert cache.kv[1].any() and not cache.kv[[0, 2]].any()


def test_a_mask_hides_slots(model):
    """Would catch a mask that is ignored or transposed: under a causal one, later tokens must not matter to earlier logits."""
    ids = torch.tensor([random_prompt(0, 10)])
    causal = torch.ones(10, 10, dtype=torch.bool).tril()
    edited = ids.clone()
    edited[0, 6:] += 1
    close(model(ids, mask=causal)[:, :6], model(edited, mask=causal)[:, :6])
    assert not torch.allclose(model(ids)[:, :6], model(edited)[:, :6])


def test_bfloat16_follows_float32(model):
    """Would catch an operation that does not run, or runs in another dtype, under bfloat16."""
    ids = torch.tensor([random_prompt(0, 20)])
    exact = model(ids)
    rounded = model.bfloat16()(ids)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.1 * exact.std()
