"""Grades 02_threshold.py."""

import torch
from torch import Tensor

from course.checks import Case, by_hand, cells, golden, stories
from course.grading import Part
from kernels import Scores
from strategies import Strategy, Window, rank
from strategies.fast_dllm import cached
from strategies.llada import serial


def own(scores: Scores, candidates: Tensor, window: Window, threshold: float = 0.9) -> Tensor:
    """The project's rule, with what its loop adds."""
    sure = candidates & (scores.confidence >= threshold)
    stuck = window.must.reshape(-1, 1) & ~sure.any(-1, keepdim=True)
    return sure | stuck & candidates & (rank(scores.doubt, candidates) == 0)


PARTS = {"threshold": Part(own, cells)}
HIGH = {"threshold": 0.99}
WAITS = {"must": torch.tensor([[True, False]])}  # two blocks of one row
TABLE = [
    Case("all that are at least 0.9 sure", ["########"], expected=["x..x...."]),
    Case("none is sure enough: the surest", ["########"], None, HIGH, expected=["x......."]),
]
TRAPS = [
    Case("what is exactly as sure as the threshold is written", ["#####---"], [[1.0, 3.0] * 4],
         {"threshold": 0.5}),
    Case("what is sure is no candidate: the surest of the others", ["-##-####"]),
    Case("each line asks for itself: one has a sure token, one has none",
         ["########", "-##-####"]),
    Case("a block that need not move writes nothing when none is sure", ["-##-####"] * 2, None, {},
         WAITS),
    Case("of equal doubts the left one alone is written", ["--######"], [[2.0] * 8]),
    Case("a line without masks writes nothing, and the others do", ["--------", "-##-####"]),
    Case("all that are at least 0.75 sure, and no other", ["########"], None,
         {"threshold": 0.75}),
]  # fmt: skip


def strategy(parts, threshold=0.9, cache="none", factor=None) -> Strategy:
    """The rule decides alone: nothing is added where it writes nothing."""

    def choose(s, window: Window, scores: Scores, candidates: Tensor, *_):
        lines = len(window.must.reshape(-1))
        asked = (scores.each(lambda t: t.reshape(lines, -1)),)
        asked += (candidates.reshape(lines, -1), window)
        return parts.threshold(*asked, threshold=threshold).view_as(candidates), scores.token

    return Strategy(parts.threshold, cached(cache), serial, choose=choose)


SEE = {"threshold": 0.99}
CHECKS = {
    "worked table": by_hand("threshold", PARTS["threshold"], TABLE),
    "properties": by_hand("threshold", PARTS["threshold"], TRAPS),
    "goldens": golden(
        PARTS, strategy, "fast-dllm", {"threshold": (0.5, 0.9), "cache": ("none", "dual")}
    ),
    "tiny model": stories(PARTS, strategy),
}
