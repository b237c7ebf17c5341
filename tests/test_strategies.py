"""What a strategy is made of: ties, parts, the registry and its order, and settings as they are declared."""

import pkgutil
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Annotated, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import strategies
from kernels import Scores
from model import Pass
from shared import ONE
from strategies import (
    KNOWN,
    MOST,
    STRATEGIES,
    Count,
    Share,
    Strategy,
    Window,
    build,
    check_settings,
    choose,
    discover,
    fresh,
    has,
        options,
    rank,
    scored,
    trait,
)  # fmt: skip
from strategies.fast_dllm import threshold_rule
from strategies.llada import full, serial

# --- parts


def test_ties_are_broken_by_position():
    """Would catch an order that the sort kernel chooses."""
    place = rank(torch.tensor([[0.5, 0.1, 0.1, 0.5, 0.1]]), torch.tensor([[True, True, False, True, True]]))
    assert place.tolist() == [[2, 0, 4, 3, 1]]


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 5), st.sampled_from([0, 1]), st.booleans())
def test_logits_are_computed_where_the_window_stands_in_the_query(first, before, length, shift, own):
    """Would catch rows that are off by one, of a slice, of a tensor with gaps, and of logits that stand a slot earlier."""
    start = first + before + shift
    window = Window(start, start + length, 0, 0, 0, None, **ONE)
    wanted = list(range(start - shift, start + length - shift))
    assert list(range(50))[slice(first, 40)][scored(Pass(slice(first, 40)), window, shift)] == wanted
    query = torch.tensor([*range(first), *wanted, 48, 49])
    at = Pass(query, own=torch.ones(1, len(query), dtype=torch.bool) if own else None)
    assert query[scored(at, window, shift)].tolist() == wanted


def test_what_a_part_does_not_say_of_itself_is_as_in_part():
    """Would catch a part that must say everything, and an attribute of one part that is another's."""
    rule, other = has(quota=True)(lambda *_: None), lambda *_: None
    assert trait(rule, "quota") and not trait(other, "quota") and not trait(rule, "revises")
    assert trait(full, "settled") == 0 and trait(other, "settled") == 1


def test_parts_inside_others_are_asked_and_copied_too():
    """Would catch a check that is passed by wrapping a part, and a memory that two decodes share."""

    class Box:
        def __init__(self, inside=None, broken=False):
            self.inside, self.broken = inside, broken

        def __call__(self, s, window, at): ...

        def check(self, strategy):
            if self.broken:
                raise ValueError("broken")

    outer = Box(Box())
    assert [*Strategy(threshold_rule(0.9), full, serial, forward=outer).parts()][-2:] == [outer, outer.inside]
    copied = fresh(outer)
    assert copied is not outer and copied.inside is not outer.inside and copied.inside.inside is None
    with pytest.raises(ValueError, match="broken"):
        Strategy(threshold_rule(0.9), full, serial, forward=Box(Box(broken=True)))


def test_a_block_that_must_move_does():
    """Would catch a block that need not move because a written cell of it was edited: nothing would ever fill it."""
    doubt = torch.tensor([[0.5, 0.2, 0.1, 0.3], [0.5, 0.2, 0.1, 0.3]])
    scores, candidates = Scores(torch.full((2, 4), 7), doubt), torch.tensor([[True, True, False, False]] * 2)
    edit = torch.tensor([[False, False, True, False]] * 2)  # a written cell
    for rule, written in ((lambda *_: (edit, scores.token), edit), (lambda *_: edit, torch.zeros_like(edit))):
        window = replace(Window(0, 4, 0, 0, 0, None, **ONE), must=torch.tensor([[True], [False]]))
        commit, token = choose(SimpleNamespace(strategy=SimpleNamespace(rule=rule)), window, scores, candidates)
        assert (commit ^ written).tolist() == [[False, True, False, False], [False] * 4] and token.equal(scores.token)


# --- the registry


def test_the_known_systems_are_listed_in_their_order():
    """Would catch a list that depends on the file system, or on which system is imported first."""
    files = [builder.__module__.rpartition(".")[2] for builder in STRATEGIES.values()]
    assert files == [name for name in KNOWN if name in files] and next(iter(STRATEGIES)) == "llada"
    there = {module.name for module in pkgutil.iter_modules(strategies.__path__)}
    assert there >= set(files) and set(KNOWN) >= set(files)


def test_a_file_in_the_folder_is_found_by_being_there(tmp_path, monkeypatch):
    """Would catch a new system that must be written into a list. It comes last, whatever was imported first; a missing one is no error."""
    for name in ("a_new", "newest"):
        text = f'from strategies import named\nfrom strategies.llada import llada as old\n\n\n@named("{name}")\n'
        (tmp_path / f"{name}.py").write_text(text + f'def {name}():\n    """{name}."""\n    return old()\n')
    before = list(STRATEGIES)
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    monkeypatch.setattr(strategies, "KNOWN", ("nowhere", *KNOWN))
    try:
        discover()
        assert list(STRATEGIES) == [*before, "a_new", "newest"] and build("newest").rule is build("llada").rule
        first = STRATEGIES.pop("llada")
        STRATEGIES["llada"] = first  # as if it had been imported last
        discover()
        assert list(STRATEGIES) == [*before, "a_new", "newest"]
    finally:
        for name in ("a_new", "newest"):
            STRATEGIES.pop(name, None)
            sys.modules.pop(f"strategies.{name}", None)
            vars(strategies).pop(name, None)
    assert list(STRATEGIES) == before


BUILDER = 'from strategies import named\n\n\n@named("{}")\ndef mine({}):\n    """Mine."""\n'


@pytest.mark.parametrize(
    "text, why",
    [
        ("from strategies.deleted import part\n", "ModuleNotFoundError: No module named 'strategies.deleted'"),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def mine(:\n", "SyntaxError: invalid syntax (lonely.py, line 1)"),
        ("raise SystemExit\n", "SystemExit:"),
        (BUILDER.format("mine", "") + "1 / 0\n", "ZeroDivisionError: division by zero"),
        (BUILDER.format("llada", ""), "ValueError: there is a strategy llada already"),
        (BUILDER.format("mine", "least, cache='none'"), "ValueError: the setting least of mine has no default"),
        (BUILDER.format("mine", "least: float = None"), "ValueError: least is None, expected a value of type float"),
        (
            BUILDER.format("mine", "least: list = ()"),
            "ValueError: the setting least of mine is no int, float, bool, text or one of a Literal",
        ),
        (BUILDER.format("mine", "least: 'Nowhere' = 1"), "NameError: name 'Nowhere' is not defined"),
    ],
)
def test_a_file_that_fails_is_left_out_with_a_line(tmp_path, monkeypatch, capsys, text, why):
    """Would catch a deleted or broken file that takes all systems along, and one that takes a name away from another. What it had entered
    before it failed is gone, also where a second file imports it."""
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    before = list(STRATEGIES)
    (tmp_path / "lonely.py").write_text(text)
    discover()
    assert capsys.readouterr().err == f"strategies/lonely.py is left out: {why}\n" and list(STRATEGIES) == before
    (tmp_path / "needing.py").write_text("from strategies.lonely import mine\n")
    discover()
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in told] == [f"strategies/{name}.py is left out" for name in ("lonely", "needing")]
    assert list(STRATEGIES) == before and told[1].endswith(why.strip())


def test_a_setting_without_a_type_has_that_of_its_default():
    """Would catch a student's `least=0.8` that the command line cannot read, and types that are written as text."""

    def mine(least=0.8, cache="none", count: "int | None" = 3): ...

    assert [(o.kind, o.optional, o.meaning) for o in options(mine).values()] == [(float, False, ""), (str, False, ""), (int, True, "")]


# --- settings


@dataclass
class Base:
    """
    count: how many
    share: of what, which goes on
        in a second line
    """

    count: Count = 3
    share: Share | None = None


@dataclass
class Settings(Base):
    """
    which: one of them
    """

    which: Literal["a", "b"] = "a"
    limit: Annotated[float, (1, 9), "a meaning in a note"] = 2.0
    name: Annotated[str | None, "the same"] = None


def test_a_setting_is_declared_once():
    """Would catch a range, a meaning or a default that is lost; Python 3.13 strips the indentation of docstrings."""
    found = options(Settings)
    assert list(found) == ["count", "share", "which", "limit", "name"]
    assert found["count"][1:6] == (int, (), (1, MOST), False, 3) and found["share"][1:6] == (float, (), (0, 1), True, None)
    assert found["share"].meaning == "of what, which goes on in a second line" and found["count"].meaning == "how many"
    assert found["which"].choices == ("a", "b") and found["which"].kind is str
    assert found["limit"].range == (1, 9) and found["limit"].meaning == "a meaning in a note"
    assert (found["name"].kind, found["name"].optional, found["name"].meaning) == (str, True, "the same")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"count": 0}, "count is 0, expected at least 1"),
        ({"count": 1.0}, "count is 1.0, expected a value of type int"),
        ({"count": True}, "count is True, expected a value of type int"),
        ({"count": None}, "count is None, expected a value of type int"),
        ({"share": 1.5}, "share is 1.5, expected between 0 and 1"),
        ({"share": float("nan")}, "share is nan, expected between 0 and 1"),
        ({"which": "c"}, "which is 'c', expected one of a, b"),
        ({"share": float("inf")}, "share is inf, expected between 0 and 1"),
        ({"count": 10**30}, "count is 1000000000000000000000000000000, expected between 1 and 1000000"),
        ({"count": 10**400}, f"count is {'1' + '0' * 27}...{'0' * 29}, expected between 1 and 1000000"),
        ({"count": 10**5000}, "count is a number of thousands of digits, expected between 1 and 1000000"),
        ({"which": ["a"]}, "which is ['a'], expected one of a, b"),
        ({"name": 3}, "name is 3, expected a value of type str"),
        ({"name": torch.zeros(2, 3)}, "name is a tensor float32 [2, 3], expected a value of type str"),
    ],
)
def test_values_are_checked_by_it(given, message):
    """Would catch a value of another type, and one outside its range."""
    with pytest.raises(ValueError) as error:
        check_settings(Settings, given)
    assert str(error.value) == message


def test_what_is_valid_passes():
    """The control for the test above."""
    check_settings(Settings, {"count": 1, "share": None, "which": "b", "limit": 9, "name": None})
    check_settings(Settings, {"share": 1, "limit": 1.0, "name": "x"})
