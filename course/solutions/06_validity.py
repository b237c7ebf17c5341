"""A solution of exercise 6."""

from collections.abc import Iterable
from itertools import product


def palindromes(length: int) -> Iterable[str]:
    for half in map("".join, product("AB", repeat=(length + 1) // 2)):
        yield half + half[: length // 2][::-1]


def palindromes_validity(length: int) -> float:
    return 0.5 ** (length // 2)  # so many pairs must agree


def lone(length: int) -> Iterable[str]:
    return ["A" * i + "B" + "A" * (length - 1 - i) for i in range(length)]


def lone_validity(length: int) -> float:
    return (1 - 1 / length) ** (length - 1)
