"""A solution of exercise 7."""


def permutation(length: int) -> float:
    return 1 / 2  # the last two masks: each may be either letter, and both may be the same


def echo(length: int) -> float:
    return 1 / 4  # the two names


def lone(length: int) -> float:
    return 1 - 1 / length  # all cells of the first forward, if each of them draws an A
