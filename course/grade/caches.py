"""Grades 08_caches.py."""

from types import SimpleNamespace

import torch

from course.checks import a_pass, drawn, golden, on_canvas, stories
from course.grading import Part, Wrong
from strategies import Strategy, Window
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import serial

PARTS = {name: Part(cached(name), a_pass) for name in ("prefix", "dual")}
# says, the block's (start, end), its age, slots
TABLE = [
    ("in the block's first forward all is computed", (8, 12), 0, 16),
    ("then, inside the block", (8, 12), 1, 16),
]
TRAPS = [
    ("the first block, later", (4, 8), 2, 16),
    ("the last block, in its first forward", (12, 16), 0, 16),
    ("the last block, later", (12, 16), 5, 16),
    ("a canvas of one block", (5, 9), 1, 9),
    ("a block of one slot", (6, 7), 1, 9),
]


def by_hand(cases: list):
    """The check that views compute and show in each case what they should, drawn slot by slot."""

    def check(mine) -> None:
        for (says, (start, end), age, S), name in (
            (case, name) for case in cases for name in PARTS
        ):
            few = torch.ones(3, 1, dtype=torch.bool), torch.arange(3), torch.ones(3).long()
            window = Window(start, end, age, 4, S - end, None, *few)
            canvas = SimpleNamespace(x=torch.arange(3 * S).view(3, S))
            yours, right = getattr(mine, name)(canvas, window), PARTS[name].own(canvas, window)
            seen = [marks(at, S) for at in (yours, right)]
            if seen[0] != seen[1]:
                block = ["#" if start <= slot < end else "-" for slot in range(S)]
                about = f"{name}: {says} (block {start} .. {end - 1} of {S} slots, age {age})"
                told = "q is computed, s is seen as it was, o is computed and not seen"
                nothing = "\n`visible` is None: nothing is cached." * (yours.visible is None)
                cells = drawn(*seen, block=block)
                raise Wrong(f"{about}; {told}{nothing}\n\n{cells}")

    return check


def marks(at, S: int) -> list[str]:
    """What a Pass does with each slot."""
    signs = {(True, True): "q", (False, True): "s", (True, False): "o", (False, False): "."}
    return [signs[pair] for pair in zip(on_canvas(at.query, S), on_canvas(at.visible, S))]


def strategy(parts, threshold=0.9, cache="dual", factor=None) -> Strategy:
    return Strategy(threshold_rule(threshold), getattr(parts, cache), serial)


SEE = {"threshold": 0.99, "cache": "dual", "block_length": 16}
CHECKS = {
    "worked table": by_hand(TABLE),
    "properties": by_hand(TRAPS),
    "goldens": golden(
        PARTS, strategy, "fast-dllm", {"cache": ("prefix", "dual"), "threshold": (0.5, 0.9)}
    ),
    "tiny model": stories(PARTS, strategy, **SEE),
}
