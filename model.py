"""The LLaDA transformer: one file, one forward over (query positions, visible slots, mask), with a K/V cache that has one slot per position.

Left out on purpose: masks, blocks and anything else about decoding (dllm.py), reading files (load_weights.py), dropout, ALiBi,
biases, tied embeddings and the other switches of LLaDA's config that its released checkpoints leave off.

Papers: LLaDA (arXiv 2502.09992); RMSNorm (1910.07467), RoPE (2104.09864), SwiGLU (2002.05202), grouped-query attention (2305.13245).

Letters: B batch, Q positions computed in this call, K slots they attend to, R rows that get logits, S slots of the cache,
C width, H heads, G key/value heads, D head width, F feed-forward width, V vocabulary.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

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
    """Keys (already rotated) and values, one slot per layer and canvas position: kv is [layers, 2, B, G, S, D].

    Zeros, not empty memory: attention multiplies even the slots it may not see by 0, and 0 * NaN is NaN.
    """

    def __init__(self, config: Config, batch: int, slots: int, device=None, dtype=None):
        shape = (config.n_layers, 2, batch, config.kv_heads, slots, config.head_width)
        self.kv = torch.zeros(shape, device=device, dtype=dtype)

    def write(self, layer: int, query: Slots, k: Tensor, v: Tensor, own: Tensor | None = None) -> None:
        """Put k and v [B, G, Q, D] into their slots; with own, bool [B, Q], only those, and leave the others as they are."""
        kv = torch.stack((k, v))  # [2, B, G, Q, D]
        self.kv[layer, :, :, :, query] = kv if own is None else torch.where(own[:, None, :, None], kv, self.read(layer, query))

    def read(self, layer: int, visible: Slots) -> Tensor:
        return self.kv[layer, :, :, :, visible]  # [2, B, G, K, D]: a view if visible is a slice

    def keep(self, batch: Tensor) -> None:
        """Forget every row of the batch but these, int64 [b]."""
        self.kv = self.kv[:, :, batch]

    def pick(self, batch: Tensor) -> "Cache":
        """Another cache with a copy of these rows, int64 [m], any of them several times."""
        other = copy.copy(self)
        other.kv = self.kv[:, :, batch]
        return other


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

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, remember, rows: slice) -> Tensor:
        """h [B, Q, C] -> [B, R, C]. Every position gets a key and a value; only `rows` attend and go through the feed-forward.

        remember: (k, v), each [B, G, Q, D] -> the k and v of all visible slots, [B, G, K, D].
        """
        cos, sin = rope
        n = self.attn_norm(h)
        k = rotate(self.split(self.k_proj(n), self.kv_heads), cos, sin)
        k, v = remember(k, self.split(self.v_proj(n), self.kv_heads))
        q = self.split(self.q_proj(n[:, rows]), self.heads)  # [B, H, R, D]
        q = rotate(q, cos[..., rows, :], sin[..., rows, :])
        attended = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=self.kv_heads != self.heads)
        h = h[:, rows] + self.attn_out(attended.transpose(1, 2).flatten(2))
        n = self.ff_norm(h)
        return h + self.ff_out(F.silu(self.ff_proj(n)) * self.up_proj(n))

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_width)).transpose(1, 2)  # [B, Q, heads * D] -> [B, heads, Q, D]


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

    def new_cache(self, batch: int, slots: int) -> Cache:
        return Cache(self.config, batch, slots, self.device, self.dtype)

    def forward(
        self,
        ids: Tensor,
        query: Slots | None = None,
        visible: Slots | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        rows: slice = slice(None),
        start: Tensor | None = None,
        own: Tensor | None = None,
        skip: Collection[int] = (),
        added: Tensor | None = None,
    ) -> Tensor:
        """Recompute the positions `query` and return the logits of `rows` among them.

        ids      int64 [B, Q], the tokens at `query`
        query    their positions, which are also their cache slots; default 0 .. Q-1
        visible  the slots they attend to, with a cache; default all of it. Without one they attend to each other.
        mask     bool [Q, K] or [B, 1, Q, K], True where a query may attend to a visible slot; default everywhere
        cache    K/V of `query` are written into their slots, in every layer, before attention reads the visible ones
        rows     which of the Q get logits; the last layer computes no more than these. A slice; default all
        own      bool [B, Q], which rows write which of their K/V to the cache; default all. The others keep what they had
        skip     numbers of the layers that are left out, from 0; they write nothing to the cache
        added    float [B, Q, C], what is added to the embeddings of the tokens; default nothing
        start    int64 [B], the first real slot of each left-padded row: RoPE counts from it, slots before it are never attended to

        Returns logits [B, R, V] in the model's dtype.
        """
        B, Q = ids.shape
        query = slice(0, Q) if query is None else query
        if cache is None:
            assert visible is None, "without a cache there are no slots to choose from"
            visible = query
        elif visible is None:
            visible = slice(0, cache.kv.shape[4])
        positions = self.indices(query)  # [Q]
        if start is not None:
            positions = positions - start[:, None]  # [B, Q]
            real = (self.indices(visible) >= start[:, None])[:, None, None]  # [B, 1, 1, K]
            mask = real if mask is None else real & mask
            mask = mask.expand(-1, -1, Q, -1)  # [B, 1, Q, K]
        rope = rope_table(positions, self.config.head_width, self.config.rope_theta)

        h = self.wte(ids) if added is None else self.wte(ids) + added  # [B, Q, C]
        for layer, block in enumerate(self.blocks):
            wanted = rows if layer == len(self.blocks) - 1 else slice(None)
            if layer in skip:
                h = h[:, wanted]
                continue
            layer_mask = mask if mask is None else mask[..., wanted, :]
            h = block(h, rope, layer_mask, partial(remember, cache, layer, query, visible, own), wanted)
        return self.ff_out(self.ln_f(h))  # [B, R, V]

    def indices(self, slots: Slots) -> Tensor:
        return torch.arange(slots.start, slots.stop, device=self.device) if isinstance(slots, slice) else slots


def remember(cache: Cache | None, layer: int, query: Slots, visible: Slots, own: Tensor | None, k: Tensor, v: Tensor):
    """Put k and v [B, G, Q, D] into their slots and return those of the visible slots; without a cache, return them as they are."""
    if cache is None:
        return k, v
    cache.write(layer, query, k, v, own)
    return cache.read(layer, visible)
