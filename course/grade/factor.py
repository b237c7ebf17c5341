"""Grades 03_factor.py."""

from course.checks import Case, by_hand, cells, golden, stories
from course.grading import Part
from strategies import Strategy
from strategies.fast_dllm import cached, factor_rule
from strategies.llada import serial


def own(scores, candidates, window, factor=1.0):
    return factor_rule(factor)(scores, candidates, window)


PARTS = {"factor": Part(own, cells)}
TABLE = [
    Case("(r + 1)(1 - c) is 0.10, 0.24, 0.80 for the three surest and 1.20 for the fourth",
         ["########"], expected=["xx.x...."])
]  # fmt: skip
SEVENTH = [[3 / 7] * 8]  # all as sure: 0.7
TRAPS = [
    Case("two masks are left and the second fails: the authors' code writes it, the paper does not",
         ["--#-#---"]),
    Case("2 (1 - 0.5) is not more than 1: a token that is just sure enough is written",
         ["###-----"], [[1.0, 2.0, 3.0, 0.1, 0.1, 0.1, 0.1, 0.1]]),
    Case("what is written already has no place among the surest", ["-##-####"]),
    Case("of equal doubts the left ones are surer: 2 and 3 times 0.3 are not more than 1",
         ["-#######"], SEVENTH),
    Case("each line has its own places", ["-##-####", "########", "#------#"]),
    Case("a factor of 2", ["########"], None, {"factor": 2.0}),
    Case("a small factor", ["########"], None, {"factor": 0.25}),
    Case("a line without masks writes nothing", ["--------", "###-####"]),
]  # fmt: skip


def strategy(parts, factor=1.0, cache="none", threshold=None) -> Strategy:
    rule = lambda scores, candidates, window: parts.factor(
        scores, candidates, window, factor=factor
    )
    return Strategy(rule, cached(cache), serial)


SEE = {"factor": 1.0}
CHECKS = {
    "worked table": by_hand("factor", PARTS["factor"], TABLE),
    "properties": by_hand("factor", PARTS["factor"], TRAPS),
    "goldens": golden(
        PARTS, strategy, "fast-dllm", {"factor": (1.0,), "cache": ("none", "prefix")}
    ),
    "tiny model": stories(PARTS, strategy, factor=1.0),
}
