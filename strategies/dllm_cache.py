"""dLLM-Cache (arXiv 2506.06295): each layer recomputes the tokens whose values changed most.

The cache gets one tensor more: added, [layers, B, S, C], what a layer last added to the residual.
"""

from collections.abc import Callable
from functools import partial
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Layer, Pass, remember
from strategies import Count, Share, Strategy, View, Window, has, named, trait
from strategies.fast_dllm import Threshold, threshold_rule
from strategies.llada import serial

# layers -> of each, every how many forwards it recomputes the prompt, and the whole answer
Intervals = Callable[[int], list[tuple[int, int]]]


def partly(plan: list[tuple[int, int]], renew: bool, layer: Layer, h: Tensor) -> Tensor:
    """Compute a layer at the first positions and those `count` others whose values are least like
    the cached ones; to the rest add what it last added to them. h [B, Q, C] -> [B, R, C].

    plan: (first, count) of each layer; `first` is the same in all, or 0: these are left out
    """
    block, at, cache, (B, Q) = layer.block, layer.at, layer.cache, h.shape[:2]
    first, count = plan[layer.number]
    start = max(plan)[0] - first  # what is before it stays as it is
    which = torch.arange(start, Q, device=h.device).expand(B, -1)  # [B, R]
    if first + count < Q - start:
        v = block.split(block.v_proj(block.attn_norm(h[:, start:])), block.kv_heads)
        here = slice(at.query.start + start, at.query.stop)
        flat = (t.float().transpose(1, 2).flatten(2) for t in (v, cache.v[:, :, here]))
        # no finer, or rounding errors would choose among the unchanged
        alike = F.cosine_similarity(*flat, dim=-1).round(decimals=4)  # [B, Q - start]
        alike[:, :first] = -2  # less than any
        which = start + alike.argsort(stable=True)[:, : first + count]
        if renew:  # all values are this forward's, of the keys only some
            cache.v[:, :, here] = v
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


def refreshed(intervals: Intervals, transfer_ratio: float) -> View:
    """Let each layer recompute prompt and answer at its own intervals, and in between this share of
    the answer. The first has all of the answer in every forward: its values depend on the tokens
    alone, and do not show that the others have changed."""

    @has(settled=inf, layers=True, memory=memory)
    def view(s, window: Window) -> Pass:
        """By the forwards of the decode where a quota says how many a block has, else, and beside
        templates, by those of the block: a row must not depend on the others of its batch."""
        P, S, G, forwards = s.prompt_length, s.x.shape[1], s.settings.gen_length, window.age
        if trait(s.strategy.rule, "quota") and not s.templated:
            whole = min(s.block_length, window.age + window.remaining)  # forwards of a block
            forwards += (window.start - P) // s.block_length * whole
        cache, (layers, width) = s.open_cache(), (s.model.config.n_layers, s.model.config.d_model)
        if not hasattr(cache, "added"):
            shape = layers, len(s.live) * s.passes, S, width
            cache.added = torch.zeros(shape, device=s.model.device, dtype=s.model.dtype)
        some = int(G * transfer_ratio)
        due = [(forwards % p == 0, forwards % g == 0) for p, g in intervals(layers)]
        plan = [(P * prompt, G if answer else some) for prompt, answer in due]  # (first, count)
        plan[0] = plan[0][0], G  # in the first layer all of the answer
        query, step = slice(P - max(plan)[0], S), partial(partly, plan, transfer_ratio > 0)
        return Pass(query, slice(0, S), layer=step, cost=sum(map(sum, plan)))

    return view


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
    alike = prompt_interval_steps, gen_interval_steps  # in all layers
    view = refreshed(lambda layers: [alike] * layers, transfer_ratio)
    return Strategy(threshold_rule(threshold), view, serial)
