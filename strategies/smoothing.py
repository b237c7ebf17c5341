"""Iteration smoothing (dInfer, arXiv 2510.08666): masks say what was expected in their place."""

from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Strategy, Sure, Window, named, require
from strategies.fast_dllm import CacheSetting, cached, threshold_rule
from strategies.llada import serial


class Smoothing:
    """Add what the forward before expected in the place of each mask it scored to its embedding."""

    def __init__(self, weigh):
        self.weigh, self.soft = weigh, None  # from forwards so far, int64 [b] -> [b]; [B, S, C]

    def fits(self, s) -> None:
        if not hasattr(s.model, "wte"):
            raise ValueError("softened masks are mixtures of embeddings, and this model has none")

    def __call__(self, s, window: Window, at: Pass) -> Tensor:
        table, live = s.model.wte.weight, window.live  # [V, C]
        if self.soft is None:
            self.soft = table.new_zeros(*s.x.shape, table.shape[1])
        logits = s.forward(window, at, self.soft[live])
        s.forbid(logits)
        expected = self.weigh(window.forwards)[:, None, None] * logits.float().softmax(-1)
        expected = (expected.to(table.dtype) @ table) * s.candidates(window)[..., None]
        self.soft[live, window.start : window.end] = expected
        return logits


@named("smoothing")
def smoothing(
    threshold: Sure = 0.9,
    weight: float = 0.15,
    growth: float = 0.02,
    max_weight: float = 0.3,
    fall: float | None = 0.02,
    cache: CacheSetting = "vicinity",
) -> Strategy:
    """Iteration smoothing (dInfer, arXiv 2510.08666): a mask's embedding says what was expected.

    threshold: commit every token at least this confident, when it has sunk so far
    weight: alpha0; of the expected embedding in the first forward
    growth: by how much the weight grows in each forward
    max_weight: what the weight stops at
    fall: by how much the threshold sinks in each forward, from 1; none starts where it ends
    """
    require(weight <= max_weight, "weight", weight, f"at most max_weight={max_weight:g}")

    def annealed(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        sunk = (1 - fall * window.forwards).clamp(min=threshold)  # [b]
        return scores.confidence >= sunk.repeat_interleave(len(candidates) // len(sunk))[:, None]

    rule = threshold_rule(threshold) if fall is None else annealed
    soft = Smoothing(lambda forwards: (weight + growth * forwards).clamp(max=max_weight))
    return Strategy(rule, cached(cache), serial, forward=soft)
