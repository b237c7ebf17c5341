"""Grades 09_pruned_suffix.py."""

from types import SimpleNamespace

import torch

from course.checks import a_pass, drawn, golden, on_canvas, stories
from course.grading import Part, Wrong
from model import Pass
from strategies import Strategy, Window, has, trait
from strategies import streaming as project
from strategies.fast_dllm import cached
from strategies.llada import serial


def own(at: Pass, window: Window, slots: int, window_size: int | None) -> Pass:
    """The project's, which is made around a view."""
    canvas = SimpleNamespace(x=torch.empty(1, slots), templated=False)
    return project.pruned(lambda s, window: at, window_size)(canvas, window)


def like(result, at: Pass, *_) -> Pass:
    """The form: a Pass, whose query and visible are None where they were."""
    for name, given in (("query", at.query), ("visible", at.visible)):
        if ((slots := getattr(a_pass(result), name)) is None) != (given is None):
            raise Wrong(f"`{name}` was {given} and has become {slots}: None stays None")
    return result


PARTS = {"pruned": Part(own, like)}
IMPORTS = {"strategies": {"Window"}}

# says, (query, visible) of the view, (block's start, end), slots, window_size
TABLE = [("the next 3 slots behind the block stay, and the last", (4, 0), (4, 8), 20, 3)]
TRAPS = [
    ("all is computed in a block's first forward: the same slots stay", (0, 0), (4, 8), 20, 3),
    ("without a cache `visible` is None, and the query alone is pruned", (0, None), (4, 8), 20, 3),
    ("a dual cache computes the block alone, and sees what is kept", (4, 0, 8), (4, 8), 20, 3),
    ("as many slots behind the block as stay: none is left out", (8, 0), (8, 12), 16, 3),
    ("one slot more than that: one is left out", (8, 0), (8, 12), 17, 3),
    ("window_size None prunes nothing", (4, 0), (4, 8), 20, None),
    ("the last block has nothing behind it", (16, 0), (16, 20), 20, 3),
    ("window_size 0 leaves the last slot alone", (4, 0), (4, 8), 20, 0),
    ("a block in the middle: what lies before it is seen", (8, 0), (8, 12), 20, 2),
]


def by_hand(cases: list):
    def check(mine) -> None:
        for says, (first, seen, *end), (start, stop), slots, size in cases:
            query = slice(first, *(end or [slots]))
            at = Pass(query, None if seen is None else slice(seen, slots))
            few = torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]), torch.tensor([1])
            window = Window(start, stop, 1, start, slots - stop, None, *few)
            results = [part(at, window, slots, size) for part in (mine.pruned, own)]
            about = f"{says} (block {start} .. {stop - 1} of {slots} slots, window_size {size})"
            for name in ("query", "visible"):
                cells = [on_canvas(getattr(result, name), slots) for result in results]
                if cells[0] != cells[1]:
                    block = ["#" if start <= i < stop else "-" for i in range(slots)]
                    raise Wrong(f"{name}: {about}\n\n{drawn(*cells, block=block)}")

    return check


def strategy(parts, threshold=0.9, window_size=96, confidence_alpha=0.3, cache="prefix"):
    inside = cached(cache)

    @has(settled=trait(inside, "settled"), inside=inside)
    def view(s, window: Window) -> Pass:
        return parts.pruned(inside(s, window), window, s.x.shape[1], window_size)

    rule = project.streaming(threshold, window_size, confidence_alpha).rule
    return Strategy(rule, view, serial, eos="stop")


SEE = {"gen_length": 128, "block_length": 16, "window_size": 16}
CHECKS = {
    "worked table": by_hand(TABLE),
    "properties": by_hand(TRAPS),
    "goldens": golden(PARTS, strategy, "streaming", {}),
    "tiny model": stories(PARTS, strategy, gen_length=128, block_length=16, window_size=16),
}
