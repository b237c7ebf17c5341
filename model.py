"""The transformer of LLaDA and Dream: one forward over (query positions, visible slots, mask), with
a K/V cache that has one slot per position.

Left out on purpose: all about decoding (dllm.py) and files (load_weights.py); dropout, ALiBi, tied
embeddings and other switches that no released checkpoint turns on.

Papers: LLaDA (arXiv 2502.09992), Dream (2508.15487); RMSNorm (1910.07467), RoPE (2104.09864),
SwiGLU (2002.05202), grouped-query attention (2305.13245).

Letters: B batch, Q positions computed in this call, K slots they attend to, R rows that get logits,
S slots of the cache, C width, H heads, G key/value heads, D head width, F feed-forward width,
V vocabulary.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import attend

# positions on the canvas: a slice with both ends, or int64 [n]; a slice is a view, a tensor a copy
Slots = slice | Tensor


@dataclass(frozen=True)
class Config:
    """The shape of a checkpoint, in the names of LLaDA's config.json; lengths in tokens."""

    d_model: int
    n_layers: int
    n_heads: int
    mlp_hidden_size: int
    vocab_size: int  # rows of the embedding: config.json's embedding_size where that is larger
    mask_token_id: int
    eos_token_id: int  # of several end tokens the one that fills what is left of an answer
    n_kv_heads: int | None = None  # None: as many as n_heads (multi-head attention)
    max_sequence_length: int = 4096
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    end_token_ids: tuple[int, ...] = ()  # what ends an answer besides EOS: the end of a turn
    qkv_bias: bool = False  # whether queries, keys and values have one: Dream's
    shift: int = 0  # how many slots before its own the logits of a token stand: Dream's 1

    @property
    def ends(self) -> tuple[int, ...]:
        return self.eos_token_id, *self.end_token_ids

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_heads

    @property
    def slot_width(self) -> int:
        return 2 * self.n_layers * self.kv_heads * self.head_width  # numbers in a slot of the cache


class Linear(nn.Linear):
    """A matrix without initial values, which a file brings, or a trainer."""

    def __init__(self, width_in: int, width_out: int, bias: bool = False):
        super().__init__(width_in, width_out, bias)

    def reset_parameters(self) -> None:
        pass  # the inherited one costs 2 s of imports on the meta device, for load_weights.py


class Int8Linear(nn.Module):
    """A matrix whose rows are whole numbers of 8 bits times a scale each, exact to half a step of
    the scale: half of bfloat16. The product is computed in the dtype of x, which holds these
    numbers exactly: ROWS at a time are copied into it. It saves memory, and takes longer."""

    ROWS = 16384  # LLaDA-8B's head has 126464

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None):
        super().__init__()
        self.bias = bias  # no matrix: in the dtype of x
        largest = weight.float().abs().amax(1, keepdim=True)  # [out, 1]
        scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight.float() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0])  # float32: bfloat16 compiles to a slow kernel

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.linear(x, rows.to(x.dtype)) for rows in self.weight.split(self.ROWS)]
        product = (torch.cat(parts, -1) * self.scale).to(x.dtype)
        return product if self.bias is None else product + self.bias


class RMSNorm(nn.Module):
    """Normalise in float32, cast back, then scale: in bfloat16 the order, LLaDA's, matters."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, h: Tensor) -> Tensor:
        return F.rms_norm(h.float(), h.shape[-1:], eps=self.eps).to(h.dtype) * self.weight


def rope_table(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """int64 [..., Q] -> cosine and sine of each position's angles, float32 [..., 1, Q, D/2]."""
    even = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    inverse_frequency = theta ** -(even / width)  # [D/2]
    angle = (positions.float()[..., None] * inverse_frequency).unsqueeze(-3)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn dimension j of x [B, H, Q, D] against j + D/2 (half-split layout), in float32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Cache:
    """Keys (already rotated) and values, one slot per layer and canvas position.

    k and v are [layers, B, G, S, D]. Zeros, not empty memory: attention multiplies even the slots
    it may not see by 0, and 0 * NaN is NaN. A system may give it further tensors that begin with
    [layers, B], as attributes; they are kept, picked and handed to the layers along with k and v.
    `of(layer)` is what one layer has, without the dimension `layers`; write and read belong to it.
    """

    def __init__(self, config: Config, batch: int, slots: int, device=None, dtype=None):
        # in this order, so that strides do not depend on the batch
        shape = (batch, config.n_layers, config.kv_heads, slots, config.head_width)
        # two tensors: compiled code writes in place into what it is given, but to write into a
        # part of that it copies all of it
        zeros = (torch.zeros(shape, device=device, dtype=dtype).transpose(0, 1) for _ in range(2))
        self.k, self.v = zeros

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def each(self, part: Callable[[Tensor], Tensor]) -> "Cache":
        """A cache of such a part of every tensor."""
        other = copy.copy(self)
        vars(other).update({name: part(tensor) for name, tensor in self.tensors().items()})
        return other

    def of(self, layer: int) -> "Cache":
        """The slots of one layer, as views. No method takes its number, so that compiled code
        serves them all."""
        return self.each(lambda tensor: tensor[layer])

    def write(self, query: Slots, k: Tensor, v: Tensor, own: Tensor | None = None) -> None:
        """Put k and v [B, G, Q, D] into their slots, int64 [B, Q] if each row has others; with
        own, bool [B, Q], only those."""
        for slots, new in ((self.k, k), (self.v, v)):  # each [B, G, S, D]
            if isinstance(query, Tensor) and query.dim() == 2:
                rows = torch.arange(len(query), device=query.device)[:, None]
                slots[rows, :, query] = new.transpose(1, 2)
            elif own is None:
                slots[:, :, query] = new
            else:
                slots[:, :, query] = torch.where(own[:, None, :, None], new, slots[:, :, query])

    def read(self, visible: Slots) -> tuple[Tensor, Tensor]:
        """Keys and values of these slots, int64 [B, K] if each row has others: [B, G, K, D]."""
        if isinstance(visible, Tensor) and visible.dim() == 2:
            rows = torch.arange(len(visible), device=visible.device)[:, None]
            return tuple(slots[rows, :, visible].transpose(1, 2) for slots in (self.k, self.v))
        return self.k[:, :, visible], self.v[:, :, visible]

    def keep(self, batch: Tensor) -> None:
        """Forget every row of the batch but these, int64 [b]."""
        vars(self).update(vars(self.pick(batch)))

    def pick(self, batch: Tensor) -> "Cache":
        """Another cache with a copy of these rows, int64 [m], any of them several times."""
        return self.each(lambda tensor: tensor[:, batch])


class Block(nn.Module):
    """One layer: attention, then SwiGLU, each on the normalised residual stream and added to it."""

    def __init__(self, config: Config):
        super().__init__()
        C, D, F_ = config.d_model, config.head_width, config.mlp_hidden_size
        self.heads, self.kv_heads, self.head_width = config.n_heads, config.kv_heads, D
        self.attn_norm = RMSNorm(C, config.rms_norm_eps)
        self.q_proj = Linear(C, config.n_heads * D, config.qkv_bias)
        self.k_proj = Linear(C, config.kv_heads * D, config.qkv_bias)
        self.v_proj = Linear(C, config.kv_heads * D, config.qkv_bias)
        self.attn_out = Linear(config.n_heads * D, C)
        self.ff_norm = RMSNorm(C, config.rms_norm_eps)
        self.ff_proj = Linear(C, F_)  # the gate
        self.up_proj = Linear(C, F_)
        self.ff_out = Linear(F_, C)

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor], mask, remember, rows: Slots):
        """h [B, Q, C] -> [B, R, C]. Every position gets a key and a value; only `rows` attend and
        go through the feed-forward.

        mask: bool [..., R, K] or None. remember: q [B, H, R, D], and k and v, each [B, G, Q, D]
        -> the k and v of all visible slots, [B, G, K, D].
        """
        cos, sin = rope
        n = self.attn_norm(h)
        q = self.split(self.q_proj(n[:, rows]), self.heads)  # [B, H, R, D]
        q = rotate(q, cos[..., rows, :], sin[..., rows, :])
        k = rotate(self.split(self.k_proj(n), self.kv_heads), cos, sin)
        k, v = remember(q, k, self.split(self.v_proj(n), self.kv_heads))
        h = h[:, rows] + self.attn_out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        n = self.ff_norm(h)
        return h + self.ff_out(F.silu(self.ff_proj(n)) * self.up_proj(n))

    def split(self, x: Tensor, heads: int) -> Tensor:
        """[B, Q, heads * D] -> [B, heads, Q, D]."""
        return x.unflatten(-1, (heads, self.head_width)).transpose(1, 2)


def remember(cache: Cache | None, query: Slots, visible: Slots, own: Tensor | None, q, k, v):
    """Put k and v [B, G, Q, D] into their slots and return those of the visible; without a cache
    return them as they are."""
    if cache is None:
        return k, v
    cache.write(query, k, v, own)
    return cache.read(visible)


class Pass(NamedTuple):
    """What one forward computes and sees."""

    query: Slots | None = None  # positions to compute, and their cache slots; default 0 .. Q-1
    visible: Slots | None = None  # slots they attend to; default all, without a cache each other
    mask: Tensor | None = None  # bool [Q, K] or [B, 1, Q, K], True where a query may attend
    # which of the Q get logits; the last layer computes no others. By default the window's
    rows: Slots = slice(None)
    hidden: Tensor | None = None  # bool [Q]: where a mask is read, whatever the canvas holds
    own: Tensor | None = None  # bool [B, Q]: whose keys and values a row writes; default all
    skip: Collection[int] = ()  # layers that are left out, from 0; they write nothing to the cache
    # runs each layer in another way than Layer.run: (layer, h [B, Q, C]) -> [B, R, C]
    layer: "Callable[[Layer, Tensor], Tensor] | None" = None
    cost: int | None = None  # positions that a row computes, summed over layers; default all Q


class Layer(NamedTuple):
    """A layer of the network about to run, with all that it reads."""

    number: int
    block: Block
    rope: tuple[Tensor, Tensor]
    at: Pass  # with query, visible and mask; `rows` are those of this layer
    cache: Cache | None  # the slots of this layer

    def run(self, h: Tensor, remember: Callable = remember) -> Tensor:
        """h [B, Q, C] -> [B, R, C]."""
        at = self.at
        mask = None if at.mask is None else at.mask[..., at.rows, :]
        slots = partial(remember, self.cache, at.query, at.visible, at.own)
        return self.block(h, self.rope, mask, slots, at.rows)


class LLaDA(nn.Module):
    """A bidirectional transformer whose logits at i predict the token at position i + config.shift.

    Parameter names are those of LLaDA's checkpoint without its prefix `model.transformer.`.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.d_model)  # without initial values, as Linear
        self.wte = nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_out = Linear(config.d_model, config.vocab_size)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.wte.weight.dtype

    def new_cache(self, batch: int, slots: int) -> Cache:
        heads = self.blocks[0].kv_heads  # of this process
        return Cache(replace(self.config, n_kv_heads=heads), batch, slots, self.device, self.dtype)

    def forward(self, ids: Tensor, at: Pass = Pass(), cache=None, start=None, added=None) -> Tensor:
        """Recompute some positions and return the logits of some of them, [B, R, V].

        ids    int64 [B, Q], the tokens at `at.query`
        cache  a Cache or None: keys and values of `at.query` are written into their slots, in
               every layer, before attention reads the visible ones
        start  int64 [B], the first real slot of each left-padded row: RoPE counts from it, slots
               before it are never attended to
        added  float [B, Q, C], what is added to the embeddings of the tokens; default nothing
        """
        Q, last, mask = ids.shape[1], len(self.blocks) - 1, at.mask
        query = slice(0, Q) if at.query is None else at.query
        every = query if cache is None else slice(0, cache.k.shape[3])
        visible = every if at.visible is None else at.visible
        assert visible is every or cache, "without a cache there are no slots to choose from"
        positions = self.indices(query)  # [Q]
        if start is not None:
            positions = positions - start[:, None]  # [B, Q]
            real = (self.indices(visible) >= start[:, None])[:, None, None]  # [B, 1, 1, K]
            if mask is not None:  # a position of padding sees itself: nothing is NaN on some GPUs
                itself = self.indices(query)[:, None] == self.indices(visible)  # [Q, K]
                real = real & mask | itself & (positions < 0)[:, None, :, None]
            mask = real.expand(-1, -1, Q, -1)  # [B, 1, Q, K]
        rope = rope_table(positions, self.config.head_width, self.config.rope_theta)
        at = at._replace(query=query, visible=visible, mask=mask)

        h = self.wte(ids) if added is None else self.wte(ids) + added  # [B, Q, C]
        for number, block in enumerate(self.blocks):
            here = at if number == last else at._replace(rows=slice(None))
            layer = Layer(number, block, rope, here, cache and cache.of(number))
            h = h[:, here.rows] if number in at.skip else (at.layer or Layer.run)(layer, h)
        return self.ff_out(self.ln_f(h))  # [B, R, V]

    def indices(self, slots: Slots) -> Tensor:
        if isinstance(slots, Tensor):
            return slots
        return torch.arange(slots.start, slots.stop, device=self.device)
