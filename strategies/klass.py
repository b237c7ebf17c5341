"""KLASS (arXiv 2511.05664): sure, and of the same mind as in the forwards before."""

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Count, Strategy, Sure, Window, named, rank
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import one_block, serial

TINY = 1e-12  # added to a probability before its logarithm


class Watch:
    """Logits as they are; and for how many forwards in a row the distribution at each cell of the
    answer has changed by less than `limit` nats, in blocks to come, too, as in the authors' code.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.last: Tensor | None = None  # float64 [B, S, V]: the probabilities last time

    def memory(self, s) -> int:
        """The last probabilities, the new ones, and logarithms of both."""
        return s.x.shape[1] * s.model.config.vocab_size * 8 * 4

    def __call__(self, s, window: Window, at: Pass) -> Tensor:
        wide = s.computed(window, at)
        logits = s.forward(wide, at)  # [b, W, V]
        s.forbid(logits)
        now, live, span = logits.double().softmax(-1), window.live, slice(wide.start, wide.end)
        if self.last is None:
            self.last = now.new_zeros(*s.x.shape, now.shape[-1])
            self.calm = torch.zeros_like(s.x)  # [B, S]
        last, calm = self.last[live, span], self.calm[live, span]
        change = (now * ((now + TINY).log() - (last + TINY).log())).sum(-1)  # [b, W]
        moves = s.candidates(window).any(-1, keepdim=True)  # a row that waits for others stays
        self.calm[live, span] = torch.where(moves, (calm + 1) * (change < self.limit), calm)
        self.last[live, span] = torch.where(moves[..., None], now, last)
        self.here = self.calm[live, window.start : window.end]  # [b, L]
        return logits[:, window.start - wide.start : window.end - wide.start]


class Stable:
    """Commit what is surer than the threshold and has been calm for `history` forwards; where
    nothing is, the quota of `steps`, which, as in the authors' code, is set when a block begins."""

    quota = True

    def __init__(self, threshold: float, history: int, inside: Watch):
        self.threshold, self.history, self.inside = threshold, history, inside

    def check(self, strategy: Strategy) -> None:
        one_block(strategy, "a rule that remembers a block's forwards")

    def __call__(self, scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        if window.age == 0:
            self.masks = candidates.new_zeros(window.batch, 1, dtype=torch.int64)
            self.masks[window.live] = candidates.sum(-1, keepdim=True)
        masks, steps = self.masks[window.live], window.age + window.remaining
        ready = candidates & (scores.confidence > self.threshold)
        ready &= (self.inside.here >= self.history) & (window.age >= self.history - 1)
        few = rank(scores.doubt, candidates) < masks // steps + (window.age < masks % steps)
        return torch.where(ready.any(-1, keepdim=True), ready, few)


@named("klass")
def klass(
    threshold: Sure = 0.9,
    kl_threshold: float = 0.01,
    history: Count = 2,
    cache: CacheSetting = "none",
) -> Strategy:
    """KLASS (arXiv 2511.05664): tokens that are sure, and whose distribution has hardly changed for
    some forwards.

    threshold: commit tokens more confident than this
    kl_threshold: ... and whose distribution moved by less than this in each forward, in nats
    history: ... in so many forwards in a row
    cache: as in fast-dllm; the paper uses none
    """
    watch = Watch(kl_threshold)
    return Strategy(Stable(threshold, history, watch), cached(cache), serial, forward=watch)
