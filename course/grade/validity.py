"""Grades 06_validity.py."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice, product
from math import sqrt

from course.checks import columns, drawn, kind
from course.grading import Part, Wrong
from dllm import generate
from lab.oracle import LANGUAGES, Oracle

MOST, RUNS = 1000, 2000
IS_ONE: dict[str, Callable[[str], bool]] = {
    "palindromes": lambda text: text == text[::-1],
    "lone": lambda text: text.count("B") == 1,
}


def own(language: str) -> Callable[[int], list[str]]:

    def listed(length: int) -> list[str]:
        """All strings of that length, slowly."""
        return [s for s in map("".join, product("AB", repeat=length)) if IS_ONE[language](s)]

    return listed


def strings(result, length: int) -> list[str]:
    """The form of a language: strings, not without end."""
    if not isinstance(result, Iterable) or isinstance(result, (str, dict)):
        raise Wrong(f"the language is {kind(result)}; expected a list of strings")
    listed = list(islice(result, MOST))
    if len(listed) == MOST or not all(isinstance(text, str) for text in listed):
        what = kind(next((text for text in listed if not isinstance(text, str)), None))
        what = f"{MOST} strings and more" if len(listed) == MOST else f"what is {what}"
        raise Wrong(f"the language of length {length} has {what}; expected a few strings")
    return listed


def share(result, *_) -> float:
    """The form of a number."""
    if isinstance(result, bool) or not isinstance(result, (int, float)) or not 0 <= result <= 1:
        what = f"{result:.4g}" if isinstance(result, (int, float)) else kind(result)
        raise Wrong(f"the number is {what}; expected a float from 0 to 1")
    return float(result)


def predicted(language: str) -> Callable[[int], float]:
    def validity(length: int) -> float:
        return oracle(own(language)(length)).one_step_validity()

    return validity


PARTS = {
    part: Part(*made)
    for language in IS_ONE
    for part, made in {
        language: (own(language), strings),
        f"{language}_validity": (predicted(language), share),
    }.items()
}


def oracle(listed: list[str]) -> Oracle:
    """A model without error of these strings."""
    LANGUAGES["yours"] = (lambda length: listed, len(listed[0]))
    try:
        return Oracle(f"yours-{len(listed[0])}")
    finally:
        del LANGUAGES["yours"]


def languages(mine) -> None:
    """Each string of the language once, and no other; the first that should not be is drawn."""
    for name, n in product(IS_ONE, (2, 3, 4, 5, 6)):
        listed, right = getattr(mine, name)(n), own(name)(n)
        told = f"{name}({n}) has {len(listed)} strings"
        for text in listed:
            if len(text) != n:
                raise Wrong(f"{told}; one of them is {text!r}, of {len(text)} cells")
            if text not in right:
                near = min(right, key=lambda other: sum(a != b for a, b in zip(text, other)))
                raise Wrong(f"{told}; one is none of them\n\n{drawn(list(text), list(near))}")
        if missing := sorted(set(right) - set(listed)):
            raise Wrong(f"{told} and lacks {missing[0]!r}")
        text, times = Counter(listed).most_common(1)[0]
        if times > 1:
            raise Wrong(f"{told}; {text!r} is there {times} times, which makes it likelier")


def counted(mine) -> dict:
    """Each number beside what the decoder writes in one forward."""
    score = {}
    for name, n in product(IS_ONE, (2, 3, 6, 7)):
        exact, number = oracle(getattr(mine, name)(n)), getattr(mine, f"{name}_validity")(n)
        settings = {"gen_length": n, "block_length": n, "steps": 1, "temperature": 1.0}
        result = generate(exact, [exact.encode_chat([])] * RUNS, "llada", **settings)
        valid = int(exact.contains(result.tokens[:, 1:]).sum())
        if abs(valid - RUNS * number) > 4 * sqrt(max(1, RUNS * number * (1 - number))):
            letters = zip(*exact.strings.tolist())  # of each cell
            share = [round(cell.count(0) / len(cell), 3) for cell in letters]
            rows = {"cell": list(range(n)), "P(A)": share, "P(B)": [round(1 - p, 3) for p in share]}
            rows["drawn"] = list(exact.decode(result.tokens[0, 1:].tolist()))
            told = f"{name}_validity({n}) is {number:.4g}: {RUNS * number:.0f} of {RUNS} strings"
            raise Wrong(
                f"{told}. Written in one forward each, {valid} were of the language.\n\n"
                f"{columns(**rows)}"
            )
        score[f"{name} of {n}, predicted and counted"] = [round(number, 4), round(valid / RUNS, 4)]
    return score


def exact(mine) -> None:
    """The numbers to the last digit, also where no decode could tell."""
    for name, n in product(IS_ONE, (2, 5, 10, 11)):
        number, right = getattr(mine, f"{name}_validity")(n), PARTS[f"{name}_validity"].own(n)
        if abs(number - right) > 1e-6 * right:
            says = "close to the count of strings, but not" if abs(number - right) < 0.02 else "not"
            raise Wrong(f"{name}_validity({n}) is {number:.8g}: {says} the sum over the language")


CHECKS = {"languages": languages, "the real loop": counted, "numbers": exact}
