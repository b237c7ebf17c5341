"""DUS: an order that looks at nothing but places."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model, random_prompt
from dllm import decode
from shared import changed, committed, refused, run, seeds
from strategies import build
from strategies.dus import levels


def loop(length: int, base: int, skip: int) -> list[list[int]]:
    """The levels as sets of cells, in loops."""
    stride, seen, found = (length // base**skip if base > 1 else 0), set(), []
    while stride >= 1:
        found.append([i for i in range(0, length, stride) if i not in seen])
        seen |= set(found[-1])
        stride //= base
    found += [[i for i in range(length) if i not in seen]]
    found = [level for level in found if level]
    if len(found) > 1 and len(found[-1]) < len(found[-2]):
        found[-2:] = [found[-2] + found[-1]]
    return found


@given(st.integers(1, 80), st.integers(1, 6), st.integers(1, 4))
def test_levels_are_those_of_the_loop(length, base, skip):
    """Would catch leftovers that are lost, and a small last level that is not joined to the one before."""
    got = levels(length, base, skip).tolist()
    assert [[i for i, level in enumerate(got) if level == n] for n in range(max(got) + 1)] == list(map(sorted, loop(length, base, skip)))


def test_levels_of_a_few_lengths():
    """Would catch a change of their meaning: a block of 8, one whose last level is joined, and one that is all leftovers."""
    assert levels(8, 2, 1).tolist() == [0, 2, 1, 2, 0, 2, 1, 2]
    assert levels(5, 2, 1).tolist() == [0] * 5 and levels(8, 2, 9).tolist() == [0] * 8
    assert committed(build("dus").rule) == [0, 4] and committed(build("dus").rule, masked=[1, 3, 6]) == [6]


@given(seeds, st.integers(1, 5))
def test_a_power_of_the_base_takes_as_many_forwards(seed, n):
    """Would catch a forward too many, and an order that depends on what the model thinks."""
    length, order = 2**n, []
    for step in decode(random_model(seed), random_prompt(seed, 5), "dus", gen_length=length, block_length=length):
        order.append(step.commit[0].nonzero()[:, 0].tolist())
    assert order == list(map(sorted, loop(length, 2, 1))) and step.nfe == max(1, math.log2(length))


def test_it_differs_and_a_wrong_setting_is_named():
    """Negative control: the base changes answers."""
    assert changed("dus", {}, "dus", {"base": 4}) >= 3
    refused(random_model(0), "dus", "base_skip is 40, expected between 1 and 20", base_skip=40)
    with pytest.raises(ValueError, match="base is 0, expected at least 1"):
        run(0, "dus", base=0)
