"""Sparse-dLLM (arXiv 2508.02558): each layer keeps the slots that the block asks for most.

The cache gets two tensors more: `demand`, float32 [layers, B, S], how much was asked of each slot,
and `kept`, int64 [layers, B, K], what is left of them.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Layer, Pass, remember
from strategies import Count, Share, Strategy, Window, has, named
from strategies.fast_dllm import threshold_rule
from strategies.llada import serial


def measuring(block: slice, layer: Layer, h: Tensor) -> Tensor:
    """Note how much the block's queries ask of every slot: the product of their mean with its key,
    mean over the heads."""

    def measure(cache, query, visible, own, q, k, v):
        k, v = remember(cache, query, visible, own, q, k, v)
        asked = q if layer.at.rows != slice(None) else q[:, :, block]  # [B, H, R, D]
        mean = asked.float().unflatten(1, (k.shape[1], -1)).mean((2, 3))  # [B, G, D]
        cache.demand.copy_((k.float() @ mean[..., None]).mean(1)[..., 0])
        return k, v

    return layer.run(h, measure)


def seeing_kept(layer: Layer, h: Tensor) -> Tensor:
    kept, mask = layer.cache.kept, layer.at.mask  # [B, K], [B, 1, Q, S] or None

    def read_kept(cache, query, visible, own, q, k, v):
        cache.write(query, k, v, own)
        lines = torch.arange(len(kept), device=kept.device)[:, None]
        return tuple(slots[lines, :, kept].transpose(1, 2) for slots in (cache.k, cache.v))

    if mask is not None:
        mask = mask.gather(-1, kept[:, None, None].expand(-1, 1, mask.shape[2], -1))
    return layer._replace(at=layer.at._replace(mask=mask)).run(h, read_kept)


def most_asked(s, window: Window, keep_ratio: float, kernel_size: int) -> Tensor:
    """The block's slots and, of those outside it, in each layer and row the share that was asked
    for most, int64 [layers, B, K], ascending. Slots before and behind the block are neighbours."""
    S, device = s.x.shape[1], s.x.device
    slots = torch.arange(S, device=device)
    outside = torch.cat((slots[: window.start], slots[window.end :]))  # [K]
    padding = outside < s.start[s.live].repeat(s.passes)[:, None]  # [b, K]
    demand = s.cache.demand[:, :, outside].masked_fill(padding, -torch.inf)  # [layers, b, K]
    demand = F.max_pool1d(demand, kernel_size, 1, kernel_size // 2)[..., : len(outside)]
    order = demand.masked_fill(padding, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    count = ((~padding).sum(-1, keepdim=True).double() * keep_ratio).long()  # [b, 1]
    kept = outside[order[..., : count.max()]]  # [layers, b, n]
    # shorter rows are filled up with padding, which nobody sees
    kept = kept.masked_fill(torch.arange(kept.shape[-1], device=device) >= count, 0)
    block = slots[window.start : window.end].expand(*kept.shape[:2], -1)
    return torch.cat((kept, block), -1).sort().values


@named("sparse")
def sparse(
    keep_ratio: Share = 0.5, kernel_size: Count = 3, threshold: float | None = None
) -> Strategy:
    """Sparse-dLLM (arXiv 2508.02558): a block sees only the slots it has asked for most, others in
    each layer, and they are not refreshed.

    keep_ratio: r; share of the slots outside the block that each layer keeps, 0 to 1
    kernel_size: how many neighbouring slots share what the most asked of them was asked
    threshold: commit every token at least this confident; none commits the quota of `steps`
    """

    @has(settled=2)
    def evicting(s, window: Window) -> Pass:
        everything = slice(0, s.x.shape[1])
        if window.age == 0:  # the first forward does not show yet what matters
            return Pass(everything, everything)
        block = slice(window.start, window.end)
        if window.age == 1:
            layers, rows = s.model.config.n_layers, len(s.live) * s.passes
            s.cache.demand = torch.zeros(layers, rows, everything.stop, device=s.x.device)
            return Pass(everything, everything, layer=partial(measuring, block))
        if window.age == 2:
            s.cache.kept = most_asked(s, window, keep_ratio, kernel_size)
        return Pass(block, everything, layer=seeing_kept)

    return Strategy(threshold_rule(threshold), evicting, serial)
