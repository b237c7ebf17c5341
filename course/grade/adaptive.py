"""Grades 05_adaptive.py."""

from dataclasses import replace

from course.checks import Case, by_hand, cells, golden, stories
from course.grading import Part
from strategies import Strategy
from strategies.fast_dllm import cached
from strategies.llada import serial
from strategies.streaming import kept_suffix, pruned, streaming


def own(scores, candidates, window, kept=0, threshold=0.9, alpha=0.3):
    rule = streaming(threshold, window_size=None, confidence_alpha=alpha).rule
    return rule(scores, candidates, replace(window, suffix=kept))


PARTS = {"adaptive": Part(own, cells)}
HALF = {"alpha": 0.5}
TABLE = [
    Case("six of eight are masked, and 0.9 (1 - 0.5 * 2/8) = 0.7875", ["-##-####"], None, HALF,
         expected=[".x......"])
]  # fmt: skip
TRAPS = [
    Case("the first forward of a block has the plain threshold", ["-##-####"], None, HALF,
         {"age": 0}),
    Case("later ones have another", ["-##-####"], None, HALF, {"age": 3}),
    Case("8 slots kept: r = (6 + 8) / (8 + 8), and 0.80 is too little", ["-##-####"], None,
         HALF | {"kept": 8}),
    Case("40 slots kept, one mask left: r = 41/48, and 0.9 (1 - 0.5 * 7/48) is 0.834",
         ["-#------"], None, HALF | {"kept": 40}),
    Case("each line has its own share of masks", ["-##-####", "----#-##", "########"], None, HALF),
    Case("with alpha 0 it does not sink", ["-##-###-"], None, {"alpha": 0.0}),
    Case("with alpha 1 and one mask of eight left 0.1125 is enough", ["-----#--"], None,
         {"alpha": 1.0}),
    Case("0.5 is at least 0.5", ["########"], [[1.0] * 8], {"threshold": 0.5}),
    Case("a line without masks writes nothing, and the others do", ["--------", "-##-####"], None,
         HALF),
]  # fmt: skip


def strategy(parts, threshold=0.9, window_size=96, confidence_alpha=0.3) -> Strategy:
    def rule(scores, candidates, window):
        own = {"threshold": threshold, "alpha": confidence_alpha}
        kept = kept_suffix(window, window_size)
        return parts.adaptive(scores, candidates, window, kept=kept, **own)

    return Strategy(rule, pruned(cached("prefix"), window_size), serial, eos="stop")


SEE = {"threshold": 0.99, "window_size": 8, "confidence_alpha": 0.6, "block_length": 16}
CHECKS = {
    "worked table": by_hand("adaptive", PARTS["adaptive"], TABLE),
    "properties": by_hand("adaptive", PARTS["adaptive"], TRAPS),
    "goldens": golden(PARTS, strategy, "streaming", {}),
    "tiny model": stories(PARTS, strategy, **SEE),
}
