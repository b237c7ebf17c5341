"""Prism's hierarchical search: many trajectories of each prompt at first, few of them to the end (`--strategy prism`).

    explore   n trajectories sample the first block, each on its own
    search    every few forwards the best survive; copies of them, with some tokens masked again, fill the batch up to a sinking width
    refine    the k best go on to the end, and the surest of them is the answer

All of it happens between the forwards of the loop in dllm.py: rows of the batch, and their caches, are copied and dropped.

Left out on purpose: self-verification. The paper asks the model itself whether a draft is right, which takes one that follows instructions;
here the mean log-confidence of what is written stands in its place, and costs no forward.

Paper: Prism (arXiv 2602.01842).

Letters: n rows of each prompt, k those that are left, w any of them, L block length.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm import Canvas, Window, rank


@dataclass(frozen=True)
class HierarchicalSearch:
    """The settings are those of the builder `prism`, which explains them."""

    n: int
    k: int
    survivors: int
    decay: float
    interval: int
    search_from: float
    search_to: float
    remask: int

    def __call__(self, s: Canvas, windows: Iterator[Window]) -> Iterator[Window]:
        """Pass on the windows; after forwards of the first block, prune its trajectories, and at the end leave the best of each prompt."""
        first, last = (int(share * s.block_length) for share in (self.search_from, self.search_to))
        generator = torch.Generator().manual_seed(s.settings.seed)
        pools = torch.arange(len(s.x)).view(-1, self.n).tolist()  # the rows of each prompt
        s.held.fill_(True)  # as long as they are searched: a finished trajectory may be copied, and its cache with it
        for window in windows:
            yield window
            t, draw = window.age + 1, torch.rand(self.n, s.block_length, generator=generator)  # for each prompt alike, in a batch or alone
            source = {row: row for row in s.live.tolist()}  # which row each goes on from
            children: list[int] = []
            for pool in [pool for pool in pools if s.held[pool[0]]]:
                over = t >= last or not (s.x[pool, window.start : window.end] == s.mask_id).any()
                if not over and (t < first or (t - first) % self.interval):
                    continue
                s.held[pool] = False
                if over and len(pool) == self.k:
                    continue
                width = self.k if over else max(self.k, math.ceil(self.n * self.decay ** (first - t)))
                best = surest(s, pool, self.k if over else self.survivors)
                for row in pool[width:]:
                    del source[row]
                del pool[width:]
                s.held[pool] = not over
                source |= {row: best[i % len(best)] for i, row in enumerate(pool)}
                children += [] if over else pool[len(best) :]
            if any(row != other for row, other in source.items()) or len(source) < len(s.live):
                rows = sorted(source)
                s.copy(*torch.tensor([rows, [source[row] for row in rows]], device=s.x.device))
            mask_again(s, window, children, self.remask, draw)
            s.retire()
        answers = [surest(s, pool, 1)[0] for pool in pools]
        s.x, s.written = s.x[answers], s.written[answers]


def surest(s: Canvas, pool: list[int], count: int) -> list[int]:
    """The rows of a pool with the highest mean log-confidence, no two of them alike: `count`, or as many as differ."""
    found: dict[tuple, int] = {}
    for i in mean_log_confidence(s, pool).argsort(descending=True, stable=True).tolist():
        found.setdefault(tuple(s.x[pool[i]].tolist()), pool[i])
    return list(found.values())[:count]


def mean_log_confidence(s: Canvas, rows: list[int]) -> Tensor:
    """Over the tokens that each row has written, up to its first EOS, each as sure as when it was written: float32 [w]."""
    ends = s.x[rows, s.prompt_length :] == s.eos_id
    counted = (s.written[rows, s.prompt_length :] > 0) & (ends.cumsum(-1) - ends.int() == 0)
    return -(s.doubt[rows, s.prompt_length :].log1p() * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def mask_again(s: Canvas, window: Window, rows: list[int], remask: int, draw: Tensor) -> None:
    """Take back `remask` tokens of the block, drawn from the least sure, and what an early end has filled in behind it."""
    block, width = slice(window.start, window.end), len(draw)
    written = (s.x[rows, block] != s.mask_id) & ~s.given[rows, block]  # [w, L]
    pool = written & (rank(-s.doubt[rows, block], written) < 3 * remask)
    again = pool & (rank(draw.to(pool.device)[[row % width for row in rows]], pool) < remask)
    s.x[rows, block] = s.x[rows, block].masked_fill(again, s.mask_id)
    s.written[rows, block] = s.written[rows, block].masked_fill(again, 0)
    s.x[rows, window.end :] = s.x[rows, window.end :].masked_fill(~s.given[rows, window.end :], s.mask_id)
