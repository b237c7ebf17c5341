"""Grades 11_pipeline.py."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from course.checks import drawn, golden, kind, stories, student
from course.grading import Part, Wrong
from strategies import Strategy, Window, has
from strategies.d2f import block_causal, in_flight
from strategies.fast_dllm import threshold_rule


def may_open(masked: Tensor, opened: Tensor, ended: Tensor, add: float) -> Tensor:
    more = (opened < masked.shape[1]) & ~ended
    return more & (predecessors(masked).gather(1, opened[:, None])[:, 0] >= add)


def must_move(masked: Tensor, act: float) -> Tensor:
    return predecessors(masked)[:, :-1] >= act


def predecessors(masked: Tensor) -> Tensor:
    """As in the project's `pipeline`, whose lines these are."""
    return F.pad((~masked).sum(-1) / masked.shape[-1], (1, 0), value=1.0)  # [b, n + 1]


def each(name: str, dims: int):
    """The form of both: a bool for each row, or for each block of each row."""

    def form(result, masked: Tensor, *_) -> Tensor:
        expected = f"bool {list(masked.shape[:dims])}"
        if not isinstance(result, Tensor) or kind(result) != expected:
            raise Wrong(f"{name} returned {kind(result)}; expected {expected}")
        return result

    return form


PARTS = {
    "may_open": Part(may_open, each("may_open", 1)),
    "must_move": Part(must_move, each("must_move", 2)),
}
IMPORTS = {"kernels": set(), "model": set(), "strategies": set()}

# says, cells of the rows by block, opened, ended, add, act
TABLE = [("three blocks of four are open", ["abcd efg# #### ####"], [3], [0], 0.5, 0.75)]
TRAPS = [
    ("nothing is open: the prompt is full, so the first opens", ["#### ####"], [0], [0], 1, 1),
    ("filled by exactly `add` is filled by at least that", ["ab## ####"], [1], [0], 0.5, 1),
    ("and by exactly `act`", ["ab## ####"], [2], [0], 1, 0.5),
    ("every block is open: none is left", ["abcd efgh"], [2], [0], 0.5, 0.5),
    ("the row has written an EOS: nothing opens", ["ab## ####"], [1], [1], 0.5, 0.5),
    ("`add` asks the last open block, not the first", ["abcd e### ####"], [2], [0], 0.5, 0.5),
    ("a block does not push itself: its predecessor does", ["a### bcd#"], [2], [0], 1, 0.75),
    ("with 0 a block opens on an empty one", ["#### ####"], [1], [0], 0, 0),
    ("each row asks its own", ["abc# ####", "#### ####", "ab## ####"], [1, 1, 1], [0, 0, 1],
     0.5, 0.5),
    ("rows have opened as many as they have", ["abcd e### ####", "abcd #### ####"], [1, 2], [0, 0],
     0.5, 0.5),
    ("seven of ten is 0.7: compare tensors, for float(torch.tensor(0.7)) is 0.69999999",
     ["abcdefg### ##########"], [1], [0], 0.7, 0.7),
]  # fmt: skip


def by_hand(cases: list):
    def check(mine: SimpleNamespace) -> None:
        for says, rows, opened, ended, add, act in cases:
            blocks = [row.split() for row in rows]
            masked = torch.tensor([[[c == "#" for c in block] for block in row] for row in blocks])
            opened, ended = torch.tensor(opened), torch.tensor(ended).bool()
            yours = mine.may_open(masked, opened, ended, add)
            right = may_open(masked, opened, ended, add)
            about = f"{says} (add {add}, act {act}, opened {opened.tolist()})"
            if not yours.equal(right):
                facts = {"opened": opened.tolist(), "ended": ended.tolist(), "row": rows}
                told = drawn(yours.tolist(), right.tolist(), **facts)
                raise Wrong(f"may_open: {about}; a column is a row of the batch\n\n{told}")
            moves = mine.must_move(masked, act).tolist(), must_move(masked, act).tolist()
            for number, (own, expected) in enumerate(zip(*moves)):
                if own != expected:
                    told = drawn(own, expected, block=blocks[number])
                    raise Wrong(f"must_move: {about}; a column is a block\n\n{told}")

    return check


def pipeline(parts, add: float, act: float):
    """The project's, with these parts in it."""

    @has(check=in_flight)
    def schedule(s) -> Iterator[Window]:
        final = 0
        while len(s.live):
            masked, opened = s.masked(), s.opened[s.live]
            ended = s.ended().any(-1) if s.eos == "stop" else torch.zeros_like(opened).bool()
            filled = (~masked.any(-1)).cumprod(-1).sum(-1)
            more = parts.may_open(masked, opened, ended, add)
            s.opened[s.live] = (opened + more).maximum(filled + 1)
            must = parts.must_move(masked, act)
            low, high = int(filled.min()), int(s.opened[s.live].max())
            yield (window := s.window(low, high, None, final, must[:, low:high]))
            final = window.start

    return schedule


def strategy(parts, cache="exact", **own) -> Strategy:
    add, act = (own.get(f"{name}_threshold", default) for name, default in LIMITS.items())
    rule = threshold_rule(own.get("skip_threshold", 0.9), strict=True)
    return Strategy(rule, block_causal(cache == "exact"), pipeline(parts, add, act), eos="stop")


LIMITS = {"block_add": 0.1, "decoded_token": 0.95}
SEE = {"block_length": 4, "skip_threshold": 0.9999}
MODEL = student
CHECKS = {
    "worked table": by_hand(TABLE),
    "properties": by_hand(TRAPS),
    "goldens": golden(PARTS, strategy, "d2f", {}),
    "tiny model": stories(PARTS, strategy, block_length=8, model=student),
}
