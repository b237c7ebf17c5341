"""Sparse-dLLM (arXiv 2508.02558): each layer keeps the slots that the block asks for most.

The cache gets two tensors more: demand, float32 [layers, B, S], and what is kept by it, [.., K].
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Layer, Pass, remember
from strategies import Count, Share, Strategy, Window, has, named
from strategies.fast_dllm import Threshold, threshold_rule
from strategies.llada import serial


def measuring(block: slice, layer: Layer, h: Tensor) -> Tensor:
    """Note the product of the mean query of the block with each slot's key, mean over the heads."""

    def measure(cache, query, visible, own, q, k, v):
        k, v = remember(cache, query, visible, own, q, k, v)
        asked = q if layer.at.rows != slice(None) else q[:, :, block]  # [B, H, R, D]
        mean = asked.float().unflatten(1, (k.shape[1], -1)).mean((2, 3))  # [B, G, D]
        cache.demand.copy_((k.float() @ mean[..., None]).mean(1)[..., 0])
        return k, v

    return layer.run(h, measure)


def seeing_kept(layer: Layer, h: Tensor) -> Tensor:
    kept, mask = layer.cache.kept, layer.at.mask  # [B, K], [B, 1, Q, S] or None
    if mask is not None:
        mask = mask.gather(-1, kept[:, None, None].expand(-1, 1, mask.shape[2], -1))
    return layer._replace(at=layer.at._replace(visible=kept, mask=mask)).run(h)


@named("sparse")
def sparse(
    keep_ratio: Share = 0.5, kernel_size: Count = 3, threshold: Threshold = None
) -> Strategy:
    """Sparse-dLLM (arXiv 2508.02558): a block sees only the slots it has asked for most, others in
    each layer, and they are not refreshed.

    keep_ratio: r; share of the slots outside the block that each layer keeps, 0 to 1
    kernel_size: how many neighbouring slots share what the most asked of them was asked
    """

    def most_asked(s, window: Window) -> Tensor:
        """The block's slots and those kept of the others, among which both sides of the block are
        neighbours: int64 [layers, B, K], ascending."""
        slots = torch.arange(s.x.shape[1], device=s.x.device)
        outside = torch.cat((slots[: window.start], slots[window.end :]))
        padding = outside < s.start[s.live].repeat(s.passes)[:, None]  # [B, ..]
        demand = s.cache.demand[:, :, outside].masked_fill(padding, -torch.inf)  # [layers, B, ..]
        demand = F.max_pool1d(demand, kernel_size, 1, kernel_size // 2)[..., : len(outside)]
        demand = demand.masked_fill(padding, -torch.inf)
        count = ((~padding).sum(-1, keepdim=True).double() * keep_ratio).long()  # [B, 1]
        most = int(len(outside) * keep_ratio)  # of a row without padding
        kept = outside[demand.argsort(descending=True, stable=True)[..., :most]]
        kept = kept.masked_fill(slots[: kept.shape[-1]] >= count, 0)  # shorter rows do not see 0
        block = slots[window.start : window.end].expand(*kept.shape[:2], -1)
        return torch.cat((kept, block), -1).sort().values

    @has(settled=2, layers=True)
    def evicting(s, window: Window) -> Pass:
        every, block = slice(0, s.x.shape[1]), slice(window.start, window.end)
        if window.age == 0:  # the first forward does not show yet what matters
            return Pass(every, every)
        if window.age == 1:
            shape = s.model.config.n_layers, len(s.live) * s.passes, every.stop
            s.cache.demand = torch.zeros(shape, device=s.x.device)
            return Pass(every, every, layer=partial(measuring, block))
        if window.age == 2:
            s.cache.kept = most_asked(s, window)
        return Pass(block, every, layer=seeing_kept)

    return Strategy(threshold_rule(threshold), evicting, serial)
