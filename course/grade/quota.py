"""Grades 01_quota.py."""

from course.checks import Case, by_hand, cells, golden, stories
from course.grading import Part
from strategies import Strategy, has
from strategies.llada import full, serial
from strategies.llada import quota as own

PARTS = {"quota": Part(own, cells)}
IMPORTS = {"strategies": {"Window"}}  # not `rank`, which is half of it

# doubts whose confidences are all 1.0 in float32, the surest last
SATURATED = [[1e-9, 1e-10, 1e-11, 1e-12, 1e-8, 1e-9, 1e-10, 1e-13]]
TABLE = [
    Case("of 8 masks in 4 forwards the two surest are written", ["########"], expected=["x..x...."])
]
TRAPS = [
    Case("3 masks in 2 forwards: two now, rounded up", ["-#-#-#--"], window={"remaining": 2}),
    Case("with one forward left all masks are written", ["##-####-"], window={"remaining": 1}),
    Case("with more forwards than masks one is written", ["-#-----#"], window={"remaining": 9}),
    Case("the surest cell is written already: it is no candidate", ["-###-###"]),
    Case("each line counts its own masks", ["########", "-##-----", "--------"]),
    Case("of equal doubts the left one is surer", ["-#######"], [[0.5] * 8]),
    Case("in float32 these confidences are all 1.0, their doubts differ", ["########"], SATURATED),
]


def strategy(parts) -> Strategy:
    return Strategy(has(quota=True)(lambda *asked: parts.quota(*asked)), full, serial)


SEE = {"steps": 32}
CHECKS = {
    "worked table": by_hand("quota", PARTS["quota"], TABLE),
    "properties": by_hand("quota", PARTS["quota"], TRAPS),
    "goldens": golden(PARTS, strategy, "llada", {"cfg_scale": (None,)}),
    "tiny model": stories(PARTS, strategy, steps=16),
}
