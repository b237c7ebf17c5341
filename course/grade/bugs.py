"""Grades the bugs: a mutant of the decoder for each, and a student's property of both.

A mutant is one function of the project with some text replaced. It stands in its place while the
property is asked.
"""

import importlib
import inspect
import textwrap
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

from course.checks import kind, random_model
from course.grading import Part, Wrong

OTHERS = 2  # so many of the other bugs may break a property, too


class Mutant(NamedTuple):
    module: str
    name: str  # of a function in it, or Class.method
    changes: dict[str, str]  # what is replaced by what; each stands there once


MUTANTS = {
    "b1": Mutant("kernels", "score", {
        "z = logits.flatten(0, -2)":
            "z = (logits if noise is None else logits.float() + noise).flatten(0, -2)",
        "argmax(z + noise.flatten(0, -2))": "argmax(z)",
    }),
    "b2": Mutant("dllm", "loop", {
        "s.score(logits, noise, ":
            "s.score(logits / (temperature or 1), noise / temperature if temperature else None, ",
    }),
    "b3": Mutant("dllm", "Canvas.forward", {
        "self.start[self.live] if self.padded else None": "None",
    }),
    "b4": Mutant("dllm", "Canvas.write", {"ends.any(-1, keepdim=True)": "ends.any()"}),
    "b5": Mutant("strategies.fast_dllm", "factor_rule", {
        "return place < place.masked_fill(~fails, place.shape[-1]).amin(-1, keepdim=True)":
            "few = candidates.sum(-1, keepdim=True) == 2\n        "
            "count = place.masked_fill(~fails, place.shape[-1]).amin(-1, keepdim=True)\n        "
            "return few | (place < count)",
    }),
    "b6": Mutant("dllm", "Result.counters", {
        "row[self.prompt_length :][:n]": "row[: self.prompt_length + n]",
        "int((answer > 0).sum())": "len(answer)",
    }),
}  # fmt: skip


@contextmanager
def mutated(mutant: Mutant):
    """The project with this bug in it."""
    module = importlib.import_module(mutant.module)
    of, _, name = mutant.name.rpartition(".")
    owner = getattr(module, of) if of else module
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    for old, new in mutant.changes.items():
        assert source.count(old) == 1, f"{mutant.name} has no {old!r}, or several"
        source = source.replace(old, new)
    made: dict = {}
    exec(compile(source, mutant.name, "exec"), vars(module), made)
    with mock.patch.object(owner, name, made[name]):
        yield


def true_or_false(result, *_) -> bool:
    if not isinstance(result, bool):
        raise Wrong(f"holds returned {kind(result)}; expected True or False: is a bool() missing?")
    return result


PARTS = {"holds": Part(lambda model: True, true_or_false)}
IMPORTS = {
    "kernels": {"Scores", "gumbel", "score"},
    "dllm": {"decode", "generate"},
    "strategies": {"Strategy", "Window", "rank", "build"},
    "strategies.llada": {"full", "quota", "serial"},
    "strategies.fast_dllm": {"cached", "factor_rule", "threshold_rule"},
}


def whole(mine) -> None:
    if not mine.holds(random_model("a")):
        raise Wrong("it is False for the decoder as it is: no bug is needed to break it")


def breaks(mine, name: str) -> bool:
    """Whether the property fails for this mutant."""
    with mutated(MUTANTS[name]):
        return not mine.holds(random_model("a"))


def checks(name: str) -> dict:
    """The checks of a property that is to find the bug of this name."""

    def own(mine) -> None:
        if not breaks(mine, name):
            raise Wrong("it is True with the bug, too: does it look where the issue says?")
        whole(mine)  # still, or it counts its calls

    def others(mine) -> dict:
        broken = [other for other in MUTANTS if other != name and breaks(mine, other)]
        if len(broken) > OTHERS:
            told = f"it is False for {', '.join(broken)}, too: it says that something is wrong"
            raise Wrong(f"{told}, not what. At most {OTHERS} others may break it")
        return {"bugs that break it": [1 + len(broken), 1], "others": ", ".join(broken)}

    return {"holds for the decoder": whole, "finds the bug": own, "no other": others}
