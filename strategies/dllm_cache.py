"""dLLM-Cache (arXiv 2506.06295): each layer recomputes the tokens whose values changed most.

The cache gets one tensor more: added, [layers, B, S, C], what a layer last added to the residual.
"""

from functools import partial
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Layer, Pass, remember
from strategies import Count, Share, Strategy, Window, has, named, trait
from strategies.fast_dllm import Threshold, threshold_rule
from strategies.llada import serial


def partly(first: int, count: int, renew: bool, layer: Layer, h: Tensor) -> Tensor:
    """Compute a layer at the first positions and those `count` others whose values are least like
    the cached ones; to the rest add what it last added to them. h [B, Q, C] -> [B, R, C].

    The first layer is computed everywhere: its values depend on the tokens alone, and do not show
    that the others have changed.
    """
    block, at, cache, (B, Q) = layer.block, layer.at, layer.cache, h.shape[:2]
    which = torch.arange(Q, device=h.device).expand(B, Q)  # [B, R]
    if layer.number > 0 and first + count < Q:
        v = block.split(block.v_proj(block.attn_norm(h)), block.kv_heads)  # [B, G, Q, D]
        flat = (t.float().transpose(1, 2).flatten(2) for t in (v, cache.v[:, :, at.query]))
        # no finer, or rounding errors would choose among the unchanged
        alike = F.cosine_similarity(*flat, dim=-1).round(decimals=4)  # [B, Q]
        alike[:, :first] = -2  # less than any
        which = alike.argsort(stable=True)[:, : first + count]
        if renew:  # all values are this forward's, of the keys only some
            cache.v[:, :, at.query] = v
    lines = torch.arange(B, device=h.device)[:, None]
    slots = which + at.query.start  # [B, R]
    rope = tuple(table.expand(B, 1, Q, -1)[lines, 0, which][:, None] for table in layer.rope)
    mask = at.mask if at.mask is None else at.mask[..., : which.shape[1], :]  # all see the same
    write = partial(remember, cache, slots, at.visible, None)
    few = block(h[lines, which], rope, mask, write, slice(None))
    cache.added[lines, slots] = few - h[lines, which]
    h = h + cache.added[:, at.query]
    h[lines, which] = few  # to the last bit
    return h[:, at.rows]


def memory(s) -> int:
    return s.model.config.n_layers * s.x.shape[1] * s.model.config.d_model * s.model.dtype.itemsize


@named("dllm-cache")
def dllm_cache(
    prompt_interval_steps: Count = 25,
    gen_interval_steps: Count = 5,
    transfer_ratio: Share = 0.25,
    threshold: Threshold = None,
) -> Strategy:
    """dLLM-Cache (arXiv 2506.06295): each layer recomputes the tokens whose values changed most,
    and adds to the others what it added before.

    prompt_interval_steps: K_p; recompute the prompt every so many forwards, under a threshold of a
        block
    gen_interval_steps: K_r; recompute the whole answer every so many forwards, likewise
    transfer_ratio: rho; share of the answer that each layer recomputes in between, 0 to 1
    """

    @has(settled=inf, layers=True, memory=memory)
    def view(s, window: Window) -> Pass:
        """By the forwards of the decode where a quota says how many a block has; under another
        rule, and beside templates, by those of the block: a row must not depend on the others of
        its batch."""
        P, S, G, forwards = s.prompt_length, s.x.shape[1], s.settings.gen_length, window.age
        if trait(s.strategy.rule, "quota") and not s.templated:
            whole = min(s.block_length, window.age + window.remaining)  # forwards of a block
            forwards += (window.start - P) // s.block_length * whole
        cache, (layers, width) = s.open_cache(), (s.model.config.n_layers, s.model.config.d_model)
        if not hasattr(cache, "added"):
            shape = layers, len(s.live) * s.passes, S, width
            cache.added = torch.zeros(shape, device=s.model.device, dtype=s.model.dtype)
        first = 0 if forwards % prompt_interval_steps == 0 else P
        count = G if forwards % gen_interval_steps == 0 else int(G * transfer_ratio)
        step = partial(partly, P - first, count, transfer_ratio > 0)
        cost = S - first + (layers - 1) * min(S - first, P - first + count)
        return Pass(slice(first, S), slice(0, S), layer=step, cost=cost)

    return Strategy(threshold_rule(threshold), view, serial)
