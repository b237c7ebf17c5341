"""Grades 07_safe_threshold.py."""

from itertools import product

from course.checks import columns
from course.grade.validity import oracle, share
from course.grade.validity import own as listed
from course.grading import Part, Wrong
from dllm import generate
from lab.oracle import Oracle

RUNS, STEP = 300, 1e-3  # decodes at a threshold; how far from a student's it is
LENGTHS = (3, 4, 6)


def permutation(length: int) -> float:
    return 0.5


def echo(length: int) -> float:
    return 0.25


def lone(length: int) -> float:
    return 1 - 1 / length


PARTS = {part.__name__: Part(part, share) for part in (permutation, echo, lone)}


def exact(name: str, length: int) -> Oracle:
    return oracle(listed(name)(length)) if name == "lone" else Oracle(f"{name}-{length}")


def decode(name: str, length: int, threshold: float) -> tuple:
    """The oracle, many decodes with a threshold, and which of them are strings of the language."""
    model = exact(name, length)
    own = {"threshold": threshold, "cache": "none", "gen_length": length, "block_length": length}
    prompts = [model.encode_chat([])] * RUNS
    result = generate(model, prompts, "fast-dllm", **own, temperature=1.0)
    return model, result, model.contains(result.tokens[:, 1:])


def above(mine) -> dict:
    """Just above a student's number no decode fails; one that does is drawn."""
    score = {}
    for name, length in product(PARTS, LENGTHS):
        number = getattr(mine, name)(length)
        model, result, valid = decode(name, length, min(1.0, number + STEP))
        if not valid.all():
            row = int((~valid).nonzero()[0])
            cells = {"cell": list(range(length))}
            cells["written"] = list(model.decode(result.tokens[row, 1:].tolist()))
            cells["forward"] = result.written[row, 1:].tolist()
            raise Wrong(
                f"{name}({length}) is {number:.4g}. With a threshold of {number + STEP:.4g} "
                f"{int((~valid).sum())} of {RUNS} decodes are no string of the language:\n\n"
                f"{columns(**cells)}\n\nWhat was written in one forward did not see each other."
            )
        score[f"{name} of {length}"] = [round(number, 4), round(PARTS[name].own(length), 4)]
    return score


def below(mine) -> None:
    """Just below it some decode fails: otherwise a smaller number would be safe, too."""
    for name, length in product(PARTS, LENGTHS):
        number = getattr(mine, name)(length)
        model, result, valid = decode(name, length, max(0.0, number - STEP))
        if valid.all():
            cells = {"cell": list(range(length))}
            cells["written"] = list(model.decode(result.tokens[0, 1:].tolist()))
            cells["forward"] = result.written[0, 1:].tolist()
            raise Wrong(
                f"{name}({length}) is {number:.4g}, but with a threshold just below it none of "
                f"{RUNS} decodes fails: it is not the greatest that is not safe. One of them:\n\n"
                f"{columns(**cells)}"
            )


CHECKS = {"just below, some fail": below, "just above, none fails": above}
