"""Grades 10_block_mask.py."""

from types import SimpleNamespace

import torch
from torch import Tensor

from course.checks import drawn, golden, kind, stories, student
from course.grading import Part, Wrong
from model import Pass
from strategies import Strategy, Window, has
from strategies import d2f as project
from strategies.fast_dllm import threshold_rule

MASK = "block_mask(prompt_length={}, block_length={}, first={}, end={})"


def a_mask(result, prompt_length: int, block_length: int, first: int, end: int) -> Tensor:
    """The form of a mask: bool [end - first, end]."""
    asked = MASK.format(prompt_length, block_length, first, end)
    expected = f"bool {[end - first, end]}"
    if not isinstance(result, Tensor) or kind(result) != expected:
        raise Wrong(f"{asked} returned {kind(result)}; expected {expected}")
    return result


def a_pass(result, *_) -> Pass:
    """The form of the view: a Pass of two slices and a mask that fits them."""
    if not isinstance(result, Pass):
        raise Wrong(f"exact returned {kind(result)}; expected a Pass")
    sizes = []
    for name in ("query", "visible"):
        slots = getattr(result, name)
        if not isinstance(slots, slice) or None in (slots.start, slots.stop):
            raise Wrong(f"`{name}` of the Pass is {kind(slots)}: expected a slice with both ends")
        sizes.append(slots.stop - slots.start)
    if kind(result.mask) != (expected := f"bool {sizes}"):
        raise Wrong(f"the mask of the Pass is {kind(result.mask)}; of these slots it is {expected}")
    return result


def own_exact(s, window: Window) -> Pass:
    return project.block_causal(True)(s, window)


PARTS = {"block_mask": Part(project.block_mask, a_mask), "exact": Part(own_exact, a_pass)}
IMPORTS = {"strategies": {"Window"}}

# says, what block_mask is asked
TABLE = [("a prompt of 2 and blocks of 2", (2, 2, 0, 6)), ("lines 2 and 3 of it", (2, 2, 2, 4))]
TRAPS = [
    ("a prompt that is longer than a block is one, and sees itself", (5, 2, 0, 9)),
    ("a prompt that is shorter than a block", (1, 4, 0, 9)),
    ("the first line need not begin a block", (3, 4, 5, 11)),
    ("blocks of one token: from left to right", (2, 1, 0, 5)),
    ("one block: all see all of it", (3, 4, 3, 7)),
]


def masks(cases: list):
    """The check that masks are right, the first wrong line drawn."""

    def check(mine: SimpleNamespace) -> None:
        for says, asked in cases:
            both = mine.block_mask(*asked).tolist(), project.block_mask(*asked).tolist()
            for line, (yours, expected) in enumerate(zip(*both)):
                if yours != expected:
                    slot = f"{MASK.format(*asked)}, line {line}: what slot {asked[2] + line} sees"
                    block = [max(-1, (i - asked[0]) // asked[1]) for i in range(asked[3])]
                    block = ["p" if number < 0 else number for number in block]
                    raise Wrong(f"{says}. {slot}\n\n{drawn(yours, expected, block=block)}")

    return check


def views(mine: SimpleNamespace) -> None:
    """Masks that are traps, then what is computed and seen."""
    masks(TRAPS)(mine)
    for final, end in ((0, 8), (4, 8), (4, 12), (8, 12)):
        s = SimpleNamespace(prompt_length=4, block_length=4, shift=0, x=torch.zeros(1, 20).long())
        few = torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]), torch.tensor([1])
        window = Window(max(final, 4), end, None, final, 20 - end, None, *few)
        at, right = mine.exact(s, window), own_exact(s, window)
        for name in ("query", "visible"):
            cells = [[slots.start <= i < slots.stop for i in range(20)]
                     for slots in (getattr(at, name), getattr(right, name))]  # fmt: skip
            if cells[0] != cells[1]:
                known = ["f" if i < final else "#" if i < end else "-" for i in range(20)]
                asked = f"`{name}` with window.final {final} and window.end {end}"
                raise Wrong(f"{asked} (f: final)\n\n{drawn(*cells, slot=known)}")
        if not at.mask.equal(right.mask):
            raise Wrong(f"the mask of the Pass with final {final}: it is not that of block_mask")


def strategy(parts, cache="exact", **own) -> Strategy:
    """D2F with the student's mask; cache="none" recomputes everything under the same mask."""

    @has(settled=0)
    def view(s, window: Window) -> Pass:
        if cache == "exact":
            return parts.exact(s, window)
        mask = parts.block_mask(s.prompt_length, s.block_length, 0, window.end)
        return Pass(slice(0, window.end), None, mask)

    add, act = (own.get(f"{name}_threshold", default) for name, default in LIMITS.items())
    rule = threshold_rule(own.get("skip_threshold", 0.9), strict=True)
    return Strategy(rule, view, project.pipeline(add, act), eos="stop")


LIMITS = {"block_add": 0.1, "decoded_token": 0.95}
SEE = {"block_length": 8}
MODEL = student
CHECKS = {
    "worked table": masks(TABLE),
    "properties": views,
    "goldens": golden(PARTS, strategy, "d2f", {}),
    "tiny model": stories(PARTS, strategy, block_length=8, model=student),
}
