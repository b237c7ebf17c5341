"""Speculation without a loss: FreeDave (arXiv 2510.00294), Spiffy (2509.18085), SWIFT (2410.06916).

Drafts of the canvases to come are computed along with the one that is; where the rule then makes
one of them, its logits are there already, and no forward is run.

Letters: m rows whose canvas no draft was, D canvases computed for each row: itself and its drafts.
"""

import json
import re
from collections.abc import Collection
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from model import Pass
from strategies import Count, Strategy, Window, named, rank, require, trait
from strategies.fast_dllm import CacheName, cached, threshold_rule
from strategies.llada import one_block, serial

# A draft fills the i-th surest mask with its j-th likeliest token, for each of its pairs (i, j),
# both from 0; a graph is several drafts.
Graph = tuple[tuple[tuple[int, int], ...], ...]

CALIBRATED: Graph = (
    ((0, 0),), ((0, 0), (1, 0)), ((0, 0), (1, 0), (2, 0)), ((0, 0), (1, 0), (2, 0), (3, 0)),
    ((1, 0),), ((0, 0), (2, 0)), ((0, 0), (1, 0), (3, 0)),
)  # fmt: skip


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

    def __call__(self, s, window: Window, at: Pass) -> Tensor:
        live, now = s.live, s.x[s.live, window.start : window.end]  # [b, L]
        if window.age < max(1, trait(s.strategy.view, "settled")):
            # little is known of this block, and the cache may be refreshed
            self.last = s.forward(window, at)
            D = 1 + len(self.graph)
            self.drafts = torch.full((len(s.x), D, now.shape[1]), -1, device=now.device)
            self.logits = self.last.new_empty(*self.drafts.shape, self.last.shape[-1])
            self.rows = live
            return self.last
        known = (self.drafts[live] == now[:, None]).all(-1)  # [b, D]
        miss = (~known.any(-1)).nonzero()[:, 0]
        if len(miss):
            # what the rows' latest tokens were chosen by
            last = self.last[torch.isin(self.rows, live)][miss]  # [m, L, V]
            if self.skip is not None:
                layers = range(s.model.config.n_layers)
                skip = layers[self.skip] if isinstance(self.skip, slice) else self.skip
                last = self.ahead(s, window, at._replace(skip=skip), miss, now[miss, None])[:, 0]
                s.forbid(last)
            drafts = torch.cat((now[miss, None], self.draft(last, now[miss], s.mask_id)), 1)
            logits = self.ahead(s, window, at, miss, drafts)
            self.drafts[live[miss]], self.logits[live[miss]] = drafts, logits
            known[miss] = torch.arange(known.shape[1], device=known.device) == 0
        self.rows, self.last = live, self.logits[live, known.int().argmax(-1)]
        return self.last

    def ahead(self, s, window: Window, at: Pass, miss: Tensor, drafts: Tensor) -> Tensor:
        """Logits [m, D, L, V] of the live rows miss with these blocks in place, int64 [m, D, L]."""
        lines = miss.repeat_interleave(drafts.shape[1])
        canvases = s.x[s.live[lines]]
        canvases[:, window.start : window.end] = drafts.flatten(0, 1)
        fork = s.fork(lines, canvases)
        logits = fork.forward(window, at)
        s.nfe, s.rows = fork.nfe, fork.rows
        s.ran[s.live[miss]] += 1
        return logits.unflatten(0, drafts.shape[:2])

    def draft(self, logits: Tensor, now: Tensor, mask_id: int) -> Tensor:
        """The graph's drafts of blocks now [m, L], from logits [m, L, V] in which something was
        masked still: int64 [m, D - 1, L]."""
        furthest = max((j for node in self.graph for _, j in node), default=0)
        furthest = min(logits.shape[-1] - 1, furthest)
        probability, token = logits.float().softmax(-1).topk(1 + furthest)
        masked = now == mask_id
        place = rank(1 - probability[..., 0], masked)
        drafts = now[:, None].repeat(1, len(self.graph), 1)
        for number, node in enumerate(self.graph):
            for i, j in node:
                filled = (place == i) & masked
                likely = token[..., min(j, furthest)]
                drafts[:, number] = torch.where(filled, likely, drafts[:, number])
        return drafts


def drafting(
    graph: Graph, threshold: float | None, cache: CacheName, skip: Collection[int] | None = None
) -> Strategy:
    drafts = Drafts(graph, skip)
    return Strategy(threshold_rule(threshold), cached(cache), serial, forward=drafts)


@named("freedave")
def freedave(
    depth: Count = 4, threshold: float | None = None, cache: CacheName = "dual"
) -> Strategy:
    """FreeDave (arXiv 2510.00294): each forward also computes where the next ones may lead; the
    same tokens in fewer forwards.

    depth: canvases a forward computes; 1 is no speculation
    threshold: commit every token at least this confident; none commits the quota of `steps`
    cache: as in fast-dllm
    """
    return drafting(chain(depth), threshold, cache)


@named("spiffy")
def spiffy(
    graph: str | None = None, threshold: float | None = None, cache: CacheName = "dual"
) -> Strategy:
    """Spiffy (arXiv 2509.18085): as freedave, but the drafts are those that came true most often
    when they were counted.

    graph: a file that lab/calibrate.py wrote; none takes what it found for the embedded model at
        one token per forward
    threshold: commit every token at least this confident; none commits the quota of `steps`
    cache: as in fast-dllm
    """
    return drafting(CALIBRATED if graph is None else read_graph(graph), threshold, cache)


def read_graph(file: str) -> Graph:
    """The drafts in a JSON file: a list of lists of pairs [i, j]."""
    try:
        graph = json.loads(Path(file).read_text())
        graph = tuple(tuple((i, j) for i, j in node) for node in graph)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"graph {file!r} cannot be read: {error}") from None
    numbers = [n for node in graph for pair in node for n in pair]
    if not all(type(n) is int and 0 <= n < 1000 for n in numbers):
        raise ValueError(f"graph {file!r} holds something else than pairs of whole numbers from 0")
    return graph


@named("swift")
def swift(
    depth: Count = 4,
    skip: str | None = None,
    threshold: float | None = None,
    cache: CacheName = "dual",
) -> Strategy:
    """SWIFT (arXiv 2410.06916), for diffusion: as freedave, but the drafts are those of the same
    network with layers left out.

    depth: canvases a forward computes; 1 is no speculation
    skip: layers left out, such as 1,3; none takes every second one between the first and the last
    threshold: commit every token at least this confident; none commits the quota of `steps`
    cache: as in fast-dllm
    """
    if skip is not None:
        numbers = re.fullmatch(r"\d+(,\d+)*", skip)
        require(numbers is not None, "skip", skip, "numbers of layers from 0, such as 1,3")
    layers = slice(1, -1, 2) if skip is None else tuple(map(int, skip.split(",")))
    return drafting(chain(depth), threshold, cache, layers)
