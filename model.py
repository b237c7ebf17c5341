"""The LLaDA transformer: one file, one forward over (query positions, visible slots, mask), with a K/V cache that has one slot per position.

Left out on purpose: masks, blocks and anything else about decoding (dllm.py), reading files (load_weights.py), dropout, ALiBi,
biases, tied embeddings and the other switches of LLaDA's config that its released checkpoints leave off.

Papers: LLaDA (arXiv 2502.09992); RMSNorm (1910.07467), RoPE (2104.09864), SwiGLU (2002.05202), grouped-query attention (2305.13245).

Letters: B batch, Q positions computed in this call, K slots they attend to, R rows that get logits, S slots of the cache,
C width, H heads, G key/value heads, D head width, F feed-forward width, V vocabulary.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Slots = slice | Tensor  # positions on the canvas: a slice with both ends, or int64 [n]; a slice is a view, a tensor a copy


@dataclass(frozen=True)
class Config:
    """The shape of a LLaDA checkpoint. Field names are those of its config.json; lengths are in tokens."""

    d_model: int
    n_layers: int
    n_heads: int
    mlp_hidden_size: int
    vocab_size: int  # rows of the embedding: config.json's embedding_size where that is larger (padded) than its vocab_size
    mask_token_id: int
    eos_token_id: int
    n_kv_heads: int | None = None  # None: as many as n_heads (multi-head attention)
    max_sequence_length: int = 4096
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_heads


class Linear(nn.Linear):
    """A matrix without a bias and without initial values: they come from a file, or from whoever trains it."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__(width_in, width_out, bias=False)

    def reset_parameters(self) -> None:  # the inherited one costs 2 s of imports on the meta device, where load_weights.py builds
        pass


class Int8Linear(nn.Module):
    """A matrix whose rows are whole numbers of 8 bits times a scale each: half the memory of bfloat16, to half a step of the scale.

    The product is computed in the dtype of x, which holds these numbers exactly; compiled, no such copy of the matrix is stored.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127  # [out, 1]
        self.register_buffer("weight", (weight.float() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0].to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


class Embedding(nn.Embedding):
    """A table of rows without initial values."""

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """Normalise in float32, cast back, then scale: in this order, as LLaDA does, because in bfloat16 the order changes the result."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, h: Tensor) -> Tensor:
        return F.rms_norm(h.float(), h.shape[-1:], eps=self.eps).to(h.dtype) * self.weight


def rope_table(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles: int64 [..., Q] -> two float32 [..., 1, Q, D/2], the 1 standing for the heads."""
    inverse_frequency = theta ** -(torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)  # [D/2]
    angle = (positions.float()[..., None] * inverse_frequency).unsqueeze(-3)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn dimension j against dimension j + D/2 (half-split layout), in float32 whatever the dtype of x [B, H, Q, D]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Cache:
    """Keys (already rotated) and values, one slot per layer and canvas position: k and v are [layers, B, G, S, D].

    Zeros, not empty memory: attention multiplies even the slots it may not see by 0, and 0 * NaN is NaN.
    demand, float32 [layers, B, S], is how much was asked of each slot when that was last measured;
    added [layers, B, S, C], what each layer last added to the residual stream there: without features it has no slots.
    `of(layer)` is what one layer has of these, without the dimension `layers`; the methods with a query or a visible belong to that.
    """

    def __init__(self, config: Config, batch: int, slots: int, device=None, dtype=None, features: bool = False):
        shape = (batch, config.n_layers, config.kv_heads, slots, config.head_width)  # so that strides do not depend on the batch
        # two tensors: compiled code writes in place into what it is given, but to write into a part of that it copies all of it
        self.k, self.v = (torch.zeros(shape, device=device, dtype=dtype).transpose(0, 1) for _ in range(2))
        self.demand = torch.zeros(config.n_layers, batch, slots, device=device)
        self.added = torch.zeros(config.n_layers, batch, slots if features else 0, config.d_model, device=device, dtype=dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def each(self, part: Callable[[Tensor], Tensor]) -> "Cache":
        """A cache of such a part of every tensor, all of which begin with [layers, B]."""
        other = copy.copy(self)
        vars(other).update({name: part(tensor) for name, tensor in self.tensors().items()})
        return other

    def of(self, layer: int) -> "Cache":
        """The slots of one layer, as views. No method takes the layer's number, so that compiled code serves them all."""
        return self.each(lambda tensor: tensor[layer])

    def write(self, query: Slots, k: Tensor, v: Tensor, own: Tensor | None = None) -> None:
        """Put k and v [B, G, Q, D] into their slots; with own, bool [B, Q], only those, and leave the others as they are."""
        for slots, new in ((self.k, k), (self.v, v)):  # each [B, G, S, D]
            if isinstance(query, Tensor) and query.dim() == 2:  # slots of each row's own, int64 [B, Q]
                slots[rows_of(query), :, query] = new.transpose(1, 2)
            else:
                slots[:, :, query] = new if own is None else torch.where(own[:, None, :, None], new, slots[:, :, query])

    def read(self, visible: Slots) -> tuple[Tensor, Tensor]:
        """Keys and values of these slots, each [B, G, K, D]: views if they are a slice; int64 [B, K] are slots of each row's own."""
        if isinstance(visible, slice) or visible.dim() == 1:
            return self.k[:, :, visible], self.v[:, :, visible]
        return tuple(slots[rows_of(visible), :, visible].transpose(1, 2) for slots in (self.k, self.v))  # from [B, K, G, D]

    def changed(self, query: Slots, v: Tensor, first: int, count: int) -> Tensor:
        """The first positions of v [B, G, Q, D], and of the others the `count` whose values are least like the cached: int64 [B, R], of the Q."""
        new, old = (t.float().transpose(1, 2).flatten(2) for t in (v, self.read(query)[1]))  # [B, Q, G * D]
        alike = F.cosine_similarity(new, old, dim=-1).round(decimals=4)  # [B, Q]; finer, rounding errors would choose among the unchanged
        alike[:, :first] = -2  # less than any
        return alike.argsort(dim=-1, stable=True)[:, : first + count]

    def measure(self, q: Tensor, k: Tensor) -> None:
        """Note how much queries q [B, H, R, D] ask of every slot: the product of their mean with its key, of k [B, G, S, D], mean over the heads."""
        mean = q.float().unflatten(1, (k.shape[1], -1)).mean((2, 3))  # [B, G, D]
        self.demand.copy_((k.float() @ mean[..., None]).mean(1)[..., 0])

    def keep(self, batch: Tensor) -> None:
        """Forget every row of the batch but these, int64 [b]."""
        vars(self).update(vars(self.pick(batch)))

    def pick(self, batch: Tensor) -> "Cache":
        """Another cache with a copy of these rows, int64 [m], any of them several times."""
        return self.each(lambda tensor: tensor[:, batch])


def rows_of(slots: Tensor) -> Tensor:
    """The row numbers [B, 1] that go with slots of each row's own, [B, n], as indices."""
    return torch.arange(len(slots), device=slots.device)[:, None]


class Block(nn.Module):
    """One layer: attention, then SwiGLU, each on the normalised residual stream and added to it."""

    def __init__(self, config: Config):
        super().__init__()
        C, D, F_ = config.d_model, config.head_width, config.mlp_hidden_size
        self.heads, self.kv_heads, self.head_width = config.n_heads, config.kv_heads, D
        self.attn_norm = RMSNorm(C, config.rms_norm_eps)
        self.q_proj = Linear(C, config.n_heads * D)
        self.k_proj = Linear(C, config.kv_heads * D)
        self.v_proj = Linear(C, config.kv_heads * D)
        self.attn_out = Linear(config.n_heads * D, C)
        self.ff_norm = RMSNorm(C, config.rms_norm_eps)
        self.ff_proj = Linear(C, F_)  # the gate
        self.up_proj = Linear(C, F_)
        self.ff_out = Linear(F_, C)

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, remember, rows: Slots) -> Tensor:
        """h [B, Q, C] -> [B, R, C]. Every position gets a key and a value; only `rows` attend and go through the feed-forward.

        remember: q [B, H, R, D], and k and v, each [B, G, Q, D] -> the k and v of all visible slots, [B, G, K, D].
        """
        cos, sin = rope
        n = self.attn_norm(h)
        q = self.split(self.q_proj(n[:, rows]), self.heads)  # [B, H, R, D]
        q = rotate(q, cos[..., rows, :], sin[..., rows, :])
        k = rotate(self.split(self.k_proj(n), self.kv_heads), cos, sin)
        k, v = remember(q, k, self.split(self.v_proj(n), self.kv_heads))
        attended = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=self.kv_heads != self.heads)
        h = h[:, rows] + self.attn_out(attended.transpose(1, 2).flatten(2))
        n = self.ff_norm(h)
        return h + self.ff_out(F.silu(self.ff_proj(n)) * self.up_proj(n))

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_width)).transpose(1, 2)  # [B, Q, heads * D] -> [B, heads, Q, D]


class Pass(NamedTuple):
    """What one forward computes and sees."""

    query: Slots | None = None  # the positions it computes, which are also their cache slots; default 0 .. Q-1
    visible: Slots | None = None  # the slots they attend to, default all (without a cache, each other); int64 [layers, B, K]: each layer's
    mask: Tensor | None = None  # bool [Q, K] or [B, 1, Q, K], True where a query may attend to a visible slot; default everywhere
    rows: Slots = slice(None)  # which of the Q get logits; the last layer computes no more than these. A slice or int64 [R]
    own: Tensor | None = None  # bool [B, Q], which rows write which of their K/V to the cache; default all. The others keep what they had
    measure: bool = False  # note in cache.demand what `rows` ask of each slot, of which all must be visible
    # (a, n): in each layer compute only the first a positions and those n others whose values have changed most since they were cached; to the
    # rest add what the layer last added to them (dLLM-Cache, arXiv 2506.06295). Needs a cache with features
    renew: tuple[int, int] | None = None
    skip: Collection[int] = ()  # numbers of the layers that are left out, from 0; they write nothing to the cache


class LLaDA(nn.Module):
    """A bidirectional transformer whose logits at position i predict the token at position i (no shift).

    Parameter names are those of the checkpoint without its prefix `model.transformer.`.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_out = Linear(config.d_model, config.vocab_size)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.wte.weight.dtype

    def new_cache(self, batch: int, slots: int, features: bool = False) -> Cache:
        heads = self.blocks[0].kv_heads  # of this process
        return Cache(replace(self.config, n_kv_heads=heads), batch, slots, self.device, self.dtype, features)

    def forward(
        self, ids: Tensor, at: Pass = Pass(), cache: Cache | None = None, start: Tensor | None = None, added: Tensor | None = None
    ) -> Tensor:
        """Recompute some positions and return the logits of some of them, [B, R, V] in the model's dtype.

        ids    int64 [B, Q], the tokens at `at.query`
        cache  K/V of `at.query` are written into their slots, in every layer, before attention reads the visible ones
        start  int64 [B], the first real slot of each left-padded row: RoPE counts from it, slots before it are never attended to
        added  float [B, Q, C], what is added to the embeddings of the tokens; default nothing
        """
        Q, rows, mask, visible = ids.shape[1], at.rows, at.mask, at.visible
        query = slice(0, Q) if at.query is None else at.query
        if cache is None:
            assert visible is None, "without a cache there are no slots to choose from"
            visible = query
        elif visible is None:
            visible = slice(0, cache.k.shape[3])
        positions = self.indices(query)  # [Q]
        if start is not None:
            positions = positions - start[:, None]  # [B, Q]
            real = (self.indices(visible) >= start[:, None])[..., None, None, :]  # [B, 1, 1, K], or as many for each layer
            mask = real if mask is None else real & mask
            mask = mask.expand(*mask.shape[:-2], Q, -1)  # [B, 1, Q, K]
        rope = rope_table(positions, self.config.head_width, self.config.rope_theta)

        h = self.wte(ids) if added is None else self.wte(ids) + added  # [B, Q, C]
        for layer, block in enumerate(self.blocks):
            slots = None if cache is None else cache.of(layer)
            wanted = rows if layer == len(self.blocks) - 1 else slice(None)
            if layer in at.skip:
                h = h[:, wanted]
                continue
            if at.renew is not None:
                h = self.renewed(layer, h, positions, at._replace(query=query, visible=visible, mask=mask), slots)
                continue
            seen, layer_mask = visible, mask
            if isinstance(visible, Tensor) and visible.dim() == 3:
                seen, layer_mask = visible[layer], mask if mask is None else mask[layer]
            layer_mask = layer_mask if layer_mask is None else layer_mask[..., wanted, :]
            asked = None if not at.measure else slice(None) if wanted == rows else rows  # of this layer's queries
            h = block(h, rope, layer_mask, partial(remember, slots, query, seen, at.own, asked), wanted)
        return self.ff_out(self.ln_f(h if at.renew is None else h[:, rows]))  # [B, R, V]

    def renewed(self, layer: int, h: Tensor, positions: Tensor, at: Pass, cache: Cache) -> Tensor:
        """One layer, computed where it must be: h [B, Q, C] -> [B, Q, C].

        The first layer is computed everywhere: there a value depends on its token alone, and does not show that the others have changed.
        """
        block, (B, Q, _), (first, count) = self.blocks[layer], h.shape, at.renew
        if layer == 0 or first + count >= Q:
            which = torch.arange(Q, device=h.device).expand(B, Q)  # int64 [B, R]
        else:
            v = block.split(block.v_proj(block.attn_norm(h)), block.kv_heads)
            which = cache.changed(at.query, v, first, count)
            cache.v[:, :, at.query] = v  # values are always those of this forward, keys only where the layer is computed
        lines, slots = rows_of(which), self.indices(at.query)[which]
        rope = rope_table(positions.expand(B, Q).gather(1, which), self.config.head_width, self.config.rope_theta)
        mask = at.mask if at.mask is None else at.mask[..., : which.shape[1], :]  # every position sees the same
        few = block(h[lines, which], rope, mask, partial(remember, cache, slots, at.visible, None, None), slice(None))
        cache.added[lines, slots] = few - h[lines, which]
        h = h + cache.added[:, at.query]
        h[lines, which] = few  # to the last bit
        return h

    def indices(self, slots: Slots) -> Tensor:
        return torch.arange(slots.start, slots.stop, device=self.device) if isinstance(slots, slice) else slots


def remember(cache: Cache | None, query: Slots, visible: Slots, own: Tensor | None, asked: slice | None, q, k, v):
    """Put k and v [B, G, Q, D] into a layer's slots and return those of the visible slots; without a cache, return them as they are."""
    if cache is None:
        return k, v
    cache.write(query, k, v, own)
    k, v = cache.read(visible)
    if asked is not None:
        cache.measure(q[:, :, asked], k)
    return k, v
