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
            forwards, nfe = forwards + ran, nfe + ran.max()
            yield step
            if due := self.due(s, window, pools):
                if children := self.prune(s, window.age + 1, due, doubt):
                    mask_again(s, window, doubt, children, self.own.remask, draws[window.age])
                s.retire()
        known = ranked(s, doubt)
        answers = [surest(known, pool, 1)[0] for pool in pools]
        s.x, s.written, s.forwards, s.nfe = s.x[answers], s.written[answers], forwards, int(nfe)

    def asks(self, s) -> Tensor:
        """Of each row its number, and whether its search is under way; with the loop's wait."""
        return torch.stack((s.live, s.held[s.live] & (s.forwards[s.live] > 0)), 1)

    def due(self, s, window: Window, pools: list[list[int]]) -> list[tuple[list[int], bool]]:
        """The pools to prune now, and of each whether its search is over."""
        own, t, told = self.own, window.age + 1, s.told[self.asks]
        first, last = (int(x * s.block_length) for x in (own.search_from, own.search_to))
        block = (window.start - s.prompt_length) // s.block_length
        masks = {row: blocks[block] for (row, _), blocks in zip(told, s.unfilled)}
        searched = {row for row, under_way in told if under_way}
        pools = [pool for pool in pools if pool[0] in searched]
        over = [t >= last or not any(masks[row] for row in pool) for pool in pools]
        now = t >= first and (t - first) % own.interval == 0
        return [(pool, ends) for pool, ends in zip(pools, over) if ends or now]

    def prune(self, s, t: int, due: list, doubt: Tensor) -> list[int]:
        """Leave in each pool its surest and, in other rows, which are returned, copies of them."""
        own, children, first = self.own, [], int(self.own.search_from * s.block_length)
        known = ranked(s, doubt)
        live = {row: row for row, _ in s.told[self.asks]}
        source = dict(live)  # which row each goes on from
        s.held[moved([row for pool, over in due if over for row in pool], doubt)] = False
        for pool, over in due:
            if over and len(pool) == own.k:
                continue
            width, count = own.k, own.k
            if not over:
                width = max(own.k, math.ceil(own.n * own.decay ** (first - t)))
                count = own.survivors or max(1, own.k // 2)
            best = surest(known, pool, count)
            for row in pool[width:]:
                del source[row]
            del pool[width:]
            source |= {row: best[i % len(best)] for i, row in enumerate(pool)}
            children += [] if over else pool[len(best) :]
        if source != live:
            rows, parents = moved(list(zip(*sorted(source.items()))), doubt)
            s.copy(rows, parents)
            doubt[rows] = doubt[parents]
        return children


def moved(values: list, like: Tensor) -> Tensor:
    """Numbers known on the host, int64, for which it does not wait."""
    return torch.tensor(values, dtype=torch.int64).to(like.device, non_blocking=True)


def ranked(s, doubt: Tensor) -> list[tuple[float, list[float]]]:
    """Mean log-confidence and canvas of every row: one wait. Ids are exact in float32."""
    score = mean_log_confidence(s, doubt, slice(None))
    return [(row[0], row[1:]) for row in torch.cat((score[:, None], s.x.float()), 1).tolist()]


def surest(known: list, pool: list[int], count: int) -> list[int]:
    """The rows of a pool with the highest mean log-confidence, no two alike, `count` at most."""
    found: dict[tuple, int] = {}
    for row in sorted(pool, key=lambda row: -known[row][0]):
        found.setdefault(tuple(known[row][1]), row)
    return list(found.values())[:count]


def mean_log_confidence(s, doubt: Tensor, rows: list[int] | slice) -> Tensor:
    """Over the tokens that each row has written, up to its first EOS, when written: float32 [w]."""
    answers = slice(s.prompt_length, None)
    ends = s.is_end(s.x[rows, answers])
    counted = (s.written[rows, answers] > 0) & (ends.cumsum(-1) - ends.int() == 0)
    return -(doubt[rows, answers].log1p() * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def mask_again(s, window: Window, doubt: Tensor, rows: list[int], remask: int, draw: Tensor):
    """Take back `remask` tokens of the block, drawn from the least sure, and what an early end has
    filled in behind it."""
    block = slice(window.start, window.end)
    draw = draw[[row % len(draw) for row in rows]].to(doubt.device, non_blocking=True)  # [w, L]
    rows = moved(rows, doubt)
    written = (s.x[rows, block] != s.mask_id) & ~s.given[rows, block]  # [w, L]
    pool = written & (rank(-doubt[rows, block], written) < 3 * remask)
    again = pool & (rank(draw, pool) < remask)
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
