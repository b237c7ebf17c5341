"""Grades 04_local_leap.py."""

from course.checks import Case, by_hand, cells, golden, stories
from course.grading import Part
from strategies import Strategy
from strategies.fast_dllm import cached
from strategies.llada import serial
from strategies.localleap import localleap


def own(scores, candidates, window, threshold=0.9, relaxed_threshold=0.75, radius=4):
    return localleap(threshold, relaxed_threshold, radius).rule(scores, candidates, window)


PARTS = {"local_leap": Part(own, cells)}
TWO = {"relaxed_threshold": 0.65, "radius": 2}
HALF = {"threshold": 0.5, "relaxed_threshold": 0.25, "radius": 2}
# all cells are 0.8 sure, those at a doubt of 0.01 are anchors
MIDDLE, LAST, FIRST = ([[0.01 if i == at else 0.25 for i in range(8)]] for at in (4, 7, 0))
TABLE = [
    Case("0 and 3 are anchors; of 1, 2, 4, 5 only 0.80 and 0.70 reach 0.65", ["########"], None,
         TWO, expected=["xx.xx..."])
]  # fmt: skip
TRAPS = [
    Case("an anchor reaches `radius` cells to either side", ["########"], MIDDLE, TWO),
    Case("radius 1", ["########"], MIDDLE, TWO | {"radius": 1}),
    Case("with radius 0 it is the plain threshold", ["########"], MIDDLE, TWO | {"radius": 0}),
    Case("a radius larger than the line reaches all of it", ["########"], FIRST,
         TWO | {"radius": 20}),
    Case("what is written already is no anchor", ["####-###"], MIDDLE, TWO),
    Case("a token admitted by an anchor is no anchor: 0.70 at cell 4 does not admit 6",
         ["--######"], None, TWO),
    Case("the first cell is no neighbour of the last", ["########"], LAST, TWO),
    Case("a line is no neighbour of another", ["########"] * 2, LAST + [[0.25] * 8], TWO),
    Case("nor the other way round", ["########"] * 2, [[0.25] * 8] + FIRST, TWO),
    Case("0.5 is at least 0.5 and 0.25 at least 0.25", ["########"],
         [[3.0, 1.0] + [3.0] * 6], HALF),
    Case("without an anchor there are no neighbours", ["-##-####"], None, TWO),
]  # fmt: skip


def strategy(parts, cache="none", **own) -> Strategy:
    rule = lambda scores, candidates, window: parts.local_leap(scores, candidates, window, **own)
    return Strategy(rule, cached(cache), serial)


SEE = {"threshold": 0.9, "relaxed_threshold": 0.75, "radius": 4}
CHECKS = {
    "worked table": by_hand("local_leap", PARTS["local_leap"], TABLE),
    "properties": by_hand("local_leap", PARTS["local_leap"], TRAPS),
    "goldens": golden(PARTS, strategy, "localleap", {}),
    "tiny model": stories(PARTS, strategy, **SEE),
}
