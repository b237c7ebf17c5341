"""Iteration smoothing (dInfer, arXiv 2510.08666): masks say what was expected in their place."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Rule, Strategy, Sure, Window, named, require
from strategies.fast_dllm import After, Before, CacheSetting, cached
from strategies.llada import serial

SLACK = 1e-5  # of a confidence: as sure as the surest


class Softened:
    """Add to each mask's embedding what is made of what the forward before expected in its place.

    Masks behind the open block are among them, and keep what was expected into their own block.
    """

    soft: Tensor | None = None  # [B, S, C]

    def expected(self, s, window: Window, logits: Tensor) -> Tensor:
        """What to add to masks of which these logits [b, W, V] were computed: [b, W, C]."""
        raise NotImplementedError

    def fits(self, s) -> None:
        if not hasattr(s.model, "wte"):
            raise ValueError("softened masks are mixtures of embeddings, and this model has none")

    def memory(self, s) -> int:
        """What is added, and logits and their probabilities of all the canvas."""
        return s.x.shape[1] * 4 * (s.model.config.d_model + 3 * s.model.config.vocab_size)

    def __call__(self, s, window: Window, at: Pass) -> Tensor:
        live, wide = window.live, s.computed(window, at)
        if self.soft is None:
            self.soft = s.model.wte.weight.new_zeros(*s.x.shape, s.model.config.d_model)
        span = slice(wide.start, wide.end)
        logits = s.forward(wide, at, self.soft[live])  # [b, W, V]
        s.forbid(logits)
        masked = s.x[live, span] == s.mask_id  # [b, W]
        if window.age is None:  # blocks in flight, of which other rows may have opened more
            masked = s.candidates(wide)
        expected = self.expected(s, window, logits) * masked[..., None]
        moves = s.candidates(window).any(-1)[:, None, None]  # a row that waits for others stays
        self.soft[live, span] = torch.where(moves, expected, self.soft[live, span])
        return logits[:, : window.end - window.start]


class Smoothing(Softened):
    """The mean of the embeddings, by a weight that grows."""

    def __init__(self, weight: float, growth: float, max_weight: float):
        require(weight <= max_weight, "weight", weight, f"at most max_weight={max_weight:g}")
        self.weight, self.growth, self.most = weight, growth, max_weight

    def expected(self, s, window: Window, logits: Tensor) -> Tensor:
        table = s.model.wte.weight  # [V, C]
        weight = (self.weight + self.growth * window.forwards).clamp(max=self.most)  # [b]
        return (weight[:, None, None] * logits.float().softmax(-1)).to(table.dtype) @ table


def sinking(threshold: float, fall: float | None) -> Callable[[Window, int], Tensor | float]:
    """A threshold that sinks from 1 by `fall` in each forward of a row: for N lines [N, 1]."""
    if fall is None:
        return lambda window, lines: threshold

    def now(window: Window, lines: int) -> Tensor:
        sunk = (1 - fall * window.forwards).clamp(min=threshold)  # [b]
        return sunk.repeat_interleave(lines // len(sunk))[:, None]

    return now


def sure_enough(now: Callable) -> Rule:
    """Every token at least this sure, and where none is, all that are as sure as the surest."""

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        sure = scores.confidence
        best = sure.masked_fill(~candidates, 0).amax(-1, keepdim=True)  # [N, 1]
        return sure >= (best - SLACK).clamp(max=now(window, len(sure)))

    return rule


@named("smoothing")
def smoothing(
    threshold: Sure = 0.9,
    weight: float = 0.15,
    growth: float = 0.02,
    max_weight: float = 0.3,
    fall: float | None = 0.02,
    cache: CacheSetting = "vicinity",
    prefix_look: Before = None,
    after_look: After = None,
) -> Strategy:
    """Iteration smoothing (dInfer, arXiv 2510.08666): a mask's embedding says what was expected.

    threshold: commit every token at least this confident, when it has sunk so far
    weight: alpha0; of the expected embedding in the first forward
    growth: by how much the weight grows in each forward
    max_weight: what the weight stops at
    fall: by how much the threshold sinks in each forward, from 1; none starts where it ends
    """
    view = cached(cache, prefix_look=prefix_look, after_look=after_look)
    soft = Smoothing(weight, growth, max_weight)
    return Strategy(sure_enough(sinking(threshold, fall)), view, serial, forward=soft)
