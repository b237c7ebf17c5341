"""Speculation without a loss, for FreeDave (arXiv 2510.00294), Spiffy and SWIFT.

Drafts of the canvases to come are computed along with the one that is; where the rule then makes
one of them, its logits are there already, and no forward is run.

Letters: m rows whose canvas no draft was, D canvases computed for each row: itself and its drafts.
"""

import copy
from collections.abc import Collection
from math import inf

import torch
from torch import Tensor

from model import Pass
from strategies import Strategy, Window, rank, require, trait
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import one_block, serial

# A draft fills the i-th surest mask with its j-th likeliest token, for each of its pairs (i, j),
# both from 0; a graph is several drafts.
Graph = tuple[tuple[tuple[int, int], ...], ...]


def chain(depth: int) -> Graph:
    """The surest mask filled, the two surest, ... up to depth - 1 (FreeDave)."""
    return tuple(tuple((i, 0) for i in range(n)) for n in range(1, depth))


class Drafts:
    """Every rule sees the logits that it would have seen, in the same order. So the tokens are
    those of the strategy without drafts, for any graph, rule (also one that remembers) and
    temperature, given a cache whose slots inside the block are computed anew in every forward.

    skip: layers without which the network makes the drafts, in a forward of their own; None makes
    them from the last logits there are
    """

    def __init__(self, graph: Graph, skip: Collection[int] | slice | None = None):
        self.graph, self.skip = graph, skip if graph else None

    def check(self, strategy: Strategy) -> None:
        one_block(strategy, "a draft")
        if trait(strategy.view, "settled") == inf:
            raise ValueError("drafts need a cache whose slots in the block are computed every time")

    def fits(self, s) -> None:
        last = s.model.config.n_layers - 1
        for layer in self.skip if isinstance(self.skip, tuple) else ():
            require(layer <= last, "skip", layer, f"a layer of the model's, 0 to {last}")

    def memory(self, s) -> int:
        """Logits of all canvases, those kept and those that come, and for each a cache."""
        config, size = s.model.config, s.model.dtype.itemsize
        logits = 2 * s.block_length * config.vocab_size
        return (1 + len(self.graph)) * (s.x.shape[1] * config.slot_width + logits) * size

    def __call__(self, s, window: Window, at: Pass) -> Tensor:
        live, now = s.live, s.x[s.live, window.start : window.end]  # [b, L]
        if window.age < max(1, trait(s.strategy.view, "settled")):
            # little is known of this block, and the cache may be refreshed
            self.last, self.rows = s.forward(window, at), live
            shape = len(s.x), 1 + len(self.graph), now.shape[1]
            self.drafts = torch.full(shape, -1, device=now.device)  # [B, D, L]
            self.logits = self.last.new_empty(*shape, self.last.shape[-1])  # [B, D, L, V]
            return self.last
        known = (self.drafts[live] == now[:, None]).all(-1)  # [b, D]
        miss = (~known.any(-1)).nonzero()[:, 0]  # [m]
        if len(miss):
            # what the rows' latest tokens were chosen by
            last = self.last[torch.searchsorted(self.rows, live[miss])]  # [m, L, V]
            if self.skip is not None:
                layers = range(s.model.config.n_layers)
                skip = layers[self.skip] if isinstance(self.skip, slice) else self.skip
                last = self.ahead(s, window, at._replace(skip=skip), miss, now[miss, None])[:, 0]
                s.forbid(last)
            drafts = torch.cat((now[miss, None], self.draft(last, now[miss], s.mask_id)), 1)
            self.drafts[live[miss]] = drafts
            self.logits[live[miss]] = self.ahead(s, window, at, miss, drafts)
            known[miss] = torch.arange(known.shape[1], device=known.device) == 0
        self.rows, self.last = live, self.logits[live, known.int().argmax(-1)]
        return self.last

    def ahead(self, s, window: Window, at: Pass, miss: Tensor, drafts: Tensor) -> Tensor:
        """Logits [m, D, L, V] of the live rows miss with these blocks in place, int64 [m, D, L]."""
        lines, fork = miss.repeat_interleave(drafts.shape[1]), copy.copy(s)
        fork.x, fork.start = s.x[s.live[lines]], s.start[s.live[lines]]
        fork.x[:, window.start : window.end] = drafts.flatten(0, 1)
        fork.live, fork.ran = torch.arange(len(lines), device=lines.device), torch.zeros_like(lines)
        fork.cache = s.cache and s.cache.pick(s.lines(lines))  # what they write is theirs alone
        logits = fork.forward(window, at)
        s.nfe, s.rows = fork.nfe, fork.rows
        s.ran[s.live[miss]] += 1
        return logits.unflatten(0, drafts.shape[:2])

    def draft(self, logits: Tensor, now: Tensor, mask_id: int) -> Tensor:
        """The graph's drafts of blocks now [m, L], from logits [m, L, V] in which something was
        masked still: int64 [m, D - 1, L]."""
        furthest = max((j for node in self.graph for _, j in node), default=0)
        choices = min(logits.shape[-1], 1 + furthest)
        probability, token = logits.float().softmax(-1).topk(choices)
        masked = now == mask_id
        place = rank(1 - probability[..., 0], masked).masked_fill(~masked, -1)
        drafts = now[:, None].repeat(1, len(self.graph), 1)
        for draft, node in zip(drafts.unbind(1), self.graph):  # views: writing them writes drafts
            for i, j in node:
                draft.copy_(torch.where(place == i, token[..., min(j, choices - 1)], draft))
        return drafts


def drafting(graph: Graph, threshold, cache, skip=None) -> Strategy:
    drafts = Drafts(graph, skip)
    return Strategy(threshold_rule(threshold), cached(cache), serial, forward=drafts)
