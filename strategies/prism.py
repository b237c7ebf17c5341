"""Prism (arXiv 2602.01842): several trajectories of each prompt at first, few of them to the end.

    explore   n trajectories sample the first block, each on its own
    search    every few forwards the best survive; copies of them, with some tokens masked again,
              fill the batch up to a sinking width
    refine    the k best go on to the end, and the surest of them is the answer

All of it happens between the steps. Left out on purpose: self-verification. The paper asks the
model itself whether a draft is right, which takes one that follows instructions; here the mean
log-confidence of what is written stands in its place, and costs no forward.
"""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated

import torch
from torch import Tensor

from strategies import MOST, Count, Share, Strategy, Window, named, rank, require, trait
from strategies.fast_dllm import CacheSetting, Threshold, cached, threshold_rule
from strategies.llada import one_block, serial


class HierarchicalSearch:
    """own: the settings of the builder `prism`, which explains them."""

    def __init__(self, own: SimpleNamespace):
        self.own, self.trajectories = own, own.n

    def check(self, strategy: Strategy) -> None:
        one_block(strategy, "a search")
        if strategy.forward or trait(strategy.rule, "revises"):
            raise ValueError("a search copies canvases and caches, but nothing that parts remember")

    def __call__(self, s, passing: Iterator) -> Iterator:
        """Pass on the steps; prune between those of the first block, leave the best at the end."""
        n, generator = self.own.n, torch.Generator().manual_seed(s.settings.seed)
        draws = torch.rand(s.block_length, n, s.block_length, generator=generator)  # by age, [n, L]
        pools = torch.arange(len(s.x)).view(-1, n).tolist()  # the rows of each prompt
        doubt = torch.zeros(s.x.shape, device=s.x.device)  # about each token when it was written
        forwards, nfe = s.forwards.new_zeros(len(pools)), 0
        s.held.fill_(True)  # while they are searched: a finished trajectory may be copied, too
        for step in passing:
            window, live = step.window, step.window.live
            span = slice(window.start, window.end)
            doubt[live, span] = doubt[live, span].where(~step.commit, step.scores.doubt)
            each = torch.stack((step.ran, step.candidates.any(-1).long()))  # of a trajectory
            total = forwards.new_zeros(2, len(pools)).index_add(1, live // n, each)
            ran = total[0] * (total[1] > 0)  # of all of a prompt's
            forwards, nfe = forwards + ran, nfe + int(ran.max())
            yield step
            if children := self.prune(s, window, pools, doubt):
                mask_again(s, window, doubt, children, self.own.remask, draws[window.age])
            s.retire()
        answers = [surest(s, doubt, pool, 1)[0] for pool in pools]
        s.x, s.written, s.forwards, s.nfe = s.x[answers], s.written[answers], forwards, nfe

    def prune(self, s, window: Window, pools: list[list[int]], doubt: Tensor) -> list[int]:
        """Leave in each pool its surest and, in other rows, which are returned, copies of them."""
        own, t, children = self.own, window.age + 1, []
        first, last = (int(x * s.block_length) for x in (own.search_from, own.search_to))
        source = {row: row for row in s.live.tolist()}  # which row each goes on from
        for pool in [pool for pool in pools if s.held[pool[0]] and s.forwards[pool[0]]]:
            over = t >= last or not (s.x[pool, window.start : window.end] == s.mask_id).any()
            if not over and (t < first or (t - first) % own.interval):
                continue
            s.held[pool] = False
            if over and len(pool) == own.k:
                continue
            width, count = own.k, own.k
            if not over:
                width = max(own.k, math.ceil(own.n * own.decay ** (first - t)))
                count = own.survivors or max(1, own.k // 2)
            best = surest(s, doubt, pool, count)
            for row in pool[width:]:
                del source[row]
            del pool[width:]
            s.held[pool] = not over
            source |= {row: best[i % len(best)] for i, row in enumerate(pool)}
            children += [] if over else pool[len(best) :]
        if source != {row: row for row in s.live.tolist()}:
            rows, parents = torch.tensor(list(zip(*sorted(source.items()))), device=s.x.device)
            s.copy(rows, parents)
            doubt[rows] = doubt[parents]
        return children


def surest(s, doubt: Tensor, pool: list[int], count: int) -> list[int]:
    """The rows of a pool with the highest mean log-confidence, no two alike, `count` at most."""
    order = mean_log_confidence(s, doubt, pool).argsort(descending=True, stable=True)
    found: dict[tuple, int] = {}
    for row in [pool[i] for i in order]:
        found.setdefault(tuple(s.x[row].tolist()), row)
    return list(found.values())[:count]


def mean_log_confidence(s, doubt: Tensor, rows: list[int]) -> Tensor:
    """Over the tokens that each row has written, up to its first EOS, when written: float32 [w]."""
    answers = slice(s.prompt_length, None)
    ends = s.is_end(s.x[rows, answers])
    counted = (s.written[rows, answers] > 0) & (ends.cumsum(-1) - ends.int() == 0)
    return -(doubt[rows, answers].log1p() * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def mask_again(s, window: Window, doubt: Tensor, rows: list[int], remask: int, draw: Tensor):
    """Take back `remask` tokens of the block, drawn from the least sure, and what an early end has
    filled in behind it."""
    block, width = slice(window.start, window.end), len(draw)
    written = (s.x[rows, block] != s.mask_id) & ~s.given[rows, block]  # [w, L]
    pool = written & (rank(-doubt[rows, block], written) < 3 * remask)
    again = pool & (rank(draw.to(pool.device)[[row % width for row in rows]], pool) < remask)
    s.x[rows, block] = s.x[rows, block].masked_fill(again, s.mask_id)
    s.written[rows, block] = s.written[rows, block].masked_fill(again, 0)
    behind = slice(window.end, None)
    s.x[rows, behind] = s.x[rows, behind].masked_fill(~s.given[rows, behind], s.mask_id)


@named("prism")
def prism(
    n: Annotated[int, (1, 1000)] = 16,
    k: Count = 4,
    survivors: Count | None = None,
    decay: Annotated[float, (1, MOST)] = 1.8,
    interval: Count = 3,
    search_from: Share = 0.1,
    search_to: Share = 0.6,
    remask: int = 2,
    threshold: Threshold = 0.9,
    cache: CacheSetting = "prefix",
) -> Strategy:
    """Prism (arXiv 2602.01842): several trajectories; the surest go on, and copies, partly masked.

    n: trajectories at the start
    k: trajectories that are left when the search is over, at most n; the best is the answer
    survivors: trajectories that go on from each pruning, at most n; none for half of k
    decay: their number, copies included, falls by this factor with every forward, until k are left
    interval: forwards from one pruning to the next
    search_from: the first pruning, as a share of block_length in forwards of the first block
    search_to: the end of the search, likewise
    remask: tokens of each copy that are masked again, from three times as many of the least sure
    """
    search = HierarchicalSearch(SimpleNamespace(**locals()))  # all the settings
    for name, value in (("k", k), ("survivors", survivors or 1)):
        require(value <= n, name, value, f"at most n={n}")
    require(search_from <= search_to, "search_from", search_from, f"at most {search_to=:g}")
    rule, view = threshold_rule(threshold), cached(cache)
    return Strategy(rule, view, serial, eos="stop", search=search, temperature=0.7)
