"""dLLM-Cache (arXiv 2506.06295): each layer recomputes the tokens whose values changed most.

The cache gets a tensor more: `added` [layers, B, S, C], what each layer last added to the residual
stream there.
"""

from functools import partial
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Layer, Pass
from strategies import Count, Share, Strategy, Window, has, named
from strategies.fast_dllm import threshold_rule
from strategies.llada import serial


def changed(new: Tensor, old: Tensor, first: int, count: int) -> Tensor:
    """Of values [B, G, Q, D] the first and, of the others, `count` that are least like the old
    ones: int64 [B, R], of the Q."""
    new, old = (v.float().transpose(1, 2).flatten(2) for v in (new, old))  # [B, Q, G * D]
    # no finer, or rounding errors would choose among the unchanged
    alike = F.cosine_similarity(new, old, dim=-1).round(decimals=4)  # [B, Q]
    alike[:, :first] = -2  # less than any
    return alike.argsort(dim=-1, stable=True)[:, : first + count]


def partly(first: int, count: int, layer: Layer, h: Tensor) -> Tensor:
    """Compute a layer at the first positions and those `count` others that have changed most; to
    the rest add what the layer last added to them. h [B, Q, C] -> [B, R, C].

    The first layer is computed everywhere: there a value depends on its token alone, and does not
    show that the others have changed.
    """
    block, at, cache, (B, Q) = layer.block, layer.at, layer.cache, h.shape[:2]
    which = torch.arange(Q, device=h.device).expand(B, Q)  # [B, R]
    if layer.number > 0 and first + count < Q:
        v = block.split(block.v_proj(block.attn_norm(h)), block.kv_heads)
        which = changed(v, cache.v[:, :, at.query], first, count)
        cache.v[:, :, at.query] = v  # all values are this forward's, keys only the computed
    lines, slots = torch.arange(B, device=h.device)[:, None], which + at.query.start
    rope = tuple(table.expand(B, 1, Q, -1)[lines, 0, which][:, None] for table in layer.rope)
    mask = at.mask if at.mask is None else at.mask[..., : which.shape[1], :]  # all see the same

    def put_and_read(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        cache.k[lines, :, slots], cache.v[lines, :, slots] = k.transpose(1, 2), v.transpose(1, 2)
        return cache.read(at.visible)

    few = block(h[lines, which], rope, mask, put_and_read, slice(None))
    cache.added[lines, slots] = few - h[lines, which]
    h = h + cache.added[:, at.query]
    h[lines, which] = few  # to the last bit
    return h[:, at.rows]


@named("dllm-cache")
def dllm_cache(
    prompt_interval_steps: Count = 25,
    gen_interval_steps: Count = 5,
    transfer_ratio: Share = 0.25,
    threshold: float | None = None,
) -> Strategy:
    """dLLM-Cache (arXiv 2506.06295): each layer recomputes the tokens whose values changed most,
    and adds to the others what it added before.

    prompt_interval_steps: K_p; recompute the prompt every so many forwards of a block
    gen_interval_steps: K_r; recompute the whole answer every so many forwards of a block
    transfer_ratio: rho; share of the answer that each layer recomputes in between, 0 to 1
    threshold: commit every token at least this confident; none commits the quota of `steps`
    """

    def memory(s) -> int:
        config = s.model.config
        return config.n_layers * s.x.shape[1] * config.d_model * s.model.dtype.itemsize

    @has(settled=inf, memory=memory)
    def view(s, window: Window) -> Pass:
        """Forwards are counted from the start of each block, like those of every cache: a row must
        not depend on the others of its batch."""
        P, S, G = s.prompt_length, s.x.shape[1], s.settings.gen_length
        cache, layers = s.open_cache(), s.model.config.n_layers
        if not hasattr(cache, "added"):
            shape = layers, len(s.live) * s.passes, S, s.model.config.d_model
            cache.added = torch.zeros(shape, device=s.model.device, dtype=s.model.dtype)
        first = 0 if window.age % prompt_interval_steps == 0 else P
        count = G if window.age % gen_interval_steps == 0 else int(G * transfer_ratio)
        Q, few = S - first, P - first + count
        step, cost = partial(partly, P - first, count), Q + (layers - 1) * min(Q, few)
        return Pass(slice(first, S), slice(0, S), layer=step, cost=cost)

    return Strategy(threshold_rule(threshold), view, serial)
