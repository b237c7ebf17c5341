"""KLASS (arXiv 2511.05664): tokens that are sure, and have been of one mind for a while."""

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Count, Strategy, Sure, Window, named, rank
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import quota, serial


class Watch:
    """Logits as they are; and for how many forwards in a row each cell's distribution has changed
    by less than `limit` nats: of the whole answer, so that a block may begin calm."""

    def __init__(self, limit: float):
        self.limit, self.last = limit, None

    memory = lambda self, s: s.x.shape[1] * s.model.config.vocab_size * 8 * 4  # and logarithms

    def __call__(self, s, window: Window, at: Pass) -> Tensor:
        wide, live = s.computed(window, at), window.live
        logits, span = s.forward(wide, at), slice(wide.start, wide.end)  # [b, W, V]
        s.forbid(logits)
        now = logits.double().softmax(-1)
        if self.last is None:
            self.last, self.calm = now.new_zeros(*s.x.shape, now.shape[-1]), torch.zeros_like(s.x)
        last, calm = self.last[live, span], self.calm[live, span]
        moved = (now * ((now + 1e-12) / (last + 1e-12)).log()).sum(-1)  # [b, W]
        waits = ~s.candidates(window).any(-1, keepdim=True)  # for other rows of the batch
        self.calm[live, span] = torch.where(waits, calm, (calm + 1) * (moved < self.limit))
        self.last[live, span] = torch.where(waits[..., None], last, now)
        return logits[:, : window.end - window.start]


@named("klass")
def klass(
    threshold: Sure = 0.9,
    kl_threshold: float = 0.01,
    history: Count = 2,
    cache: CacheSetting = "none",
) -> Strategy:
    """KLASS (arXiv 2511.05664): tokens that are sure, and whose distribution has hardly changed.

    threshold: what a token's confidence must be above
    kl_threshold: what its distribution may move by in a forward, in nats
    history: in how many forwards in a row
    """

    def stable(s, window: Window, scores: Scores, candidates: Tensor, *_):
        calm = s.strategy.forward.calm[window.live, window.start : window.end] >= history
        ready = candidates & calm & (scores.confidence > threshold) & (window.age >= history - 1)
        masks, steps = window.own.sum(-1, keepdim=True), window.age + window.remaining
        count = (masks // steps + (window.age < masks % steps)).clamp(min=1)  # as a block begins
        few = candidates & (rank(scores.doubt, candidates) < count)
        return torch.where(ready.any(-1, keepdim=True), ready, few), scores.token

    return Strategy(quota, cached(cache), serial, forward=Watch(kl_threshold), choose=stable)
