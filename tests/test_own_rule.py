"""A rule of one's own, FILE.py:NAME, or what builds it, is a strategy like the others."""

import pytest

from lab.command_line import main
from lab.contenders import contender
from lab.own_rule import faults, register
from shared import run, same
from strategies import STRATEGIES, build, options


@pytest.fixture
def file(tmp_path):
    """A file with a rule; what was registered is forgotten afterwards."""
    before = dict(STRATEGIES)
    file = tmp_path / "my_rule.py"
    file.write_text("def rule(scores, candidates, window):\n    return scores.confidence >= 0.5\n\nbroken = 1 / len('a')\n")
    yield file
    STRATEGIES.clear()
    STRATEGIES.update(before)


def test_a_rule_of_ones_own(file):
    """Would catch a file that is read but not used, and settings that are another strategy's."""
    register(f"{file}:rule")
    for cache in ("none", "dual", "vicinity"):
        assert same(run(3, f"{file}:rule", cache=cache), run(3, "fast-dllm", threshold=0.5, cache=cache))
    with pytest.raises(ValueError, match="has no setting factor: that is a setting of fast-dllm"):
        build(f"{file}:rule", factor=1.0)


def test_other_names_are_left_alone(file):
    """Would catch a name that is taken for a file, and a file that is run again for each command of a program."""
    before = list(STRATEGIES)
    for name in ("llada", "none", "a:b"):
        register(name)
    assert list(STRATEGIES) == before
    register(f"{file}:rule")
    file.write_text("1 / 0")
    register(f"{file}:rule")


def test_a_file_without_a_rule_is_refused(file):
    """Would catch a traceback."""
    for name, message in [
        (f"{file}:nothing", "defines no function 'nothing'"),
        (f"{file.parent}/none.py:rule", "there is no file"),
        (f"{file}:broken", "defines no function 'broken'"),
    ]:
        with pytest.raises(ValueError, match=message):
            register(name)
    for text, error in (("1 / 0", "ZeroDivisionError"), ("{}['x']", "KeyError"), ("raise SystemExit", "SystemExit")):
        bad = file.parent / f"{error}.py"
        bad.write_text(text)
        with pytest.raises(ValueError, match=f"does not run: {error}"):
            register(f"{bad}:rule")


OWN = '''
from model import Pass
from strategies import Strategy, require
from strategies.llada import serial


def builder(least=0.5, other: "int | None" = None):
    """A builder.

    least: how sure
    """
    require(least <= 0.9, "least", least, "at most 0.9")
    return lambda scores, candidates, window: scores.confidence >= least


class Class:
    def __init__(self, least: float = 0.5):
        self.least = least

    def __call__(self, scores, candidates, window):
        return scores.confidence >= self.least


def whole(least=0.5):
    return Strategy(builder(least), lambda s, window: Pass(slice(0, s.x.shape[1])), serial)


def unset(file=""):
    require(file, "file", file, "a name")
    return builder()


def nothing(): ...
def wrong(scores, candidates): ...
def needs(least): return builder(least)
def shadows(temperature=1.0): return builder()
def untyped(file=None): return builder()
def fails(least=0.5): return 1 / 0
def caught(least=0.5): return 1 / (least - 0.6)


def faulty(scores, candidates, window):
    return inner(scores)


def inner(scores):
    a, b = [1, 2, 3]
'''


@pytest.fixture
def own(file):
    file.write_text(OWN)
    return str(file)


@pytest.mark.parametrize("name", ["builder", "Class", "whole"])
def test_a_builder_of_ones_own(own, name):
    """Would catch settings that are not taken, and a view of one's own that another cache takes the place of."""
    register(f"{own}:{name}")
    assert list(options(STRATEGIES[f"{own}:{name}"]))[0] == "least"
    for least in (0.3, 0.5):
        plain = {"threshold": least, "cache": "none"}
        cache = {} if name == "whole" else {"cache": "none"}
        assert same(run(3, f"{own}:{name}", least=least, **cache), run(3, "fast-dllm", **plain))
    if name == "whole":
        with pytest.raises(ValueError, match="has no setting cache: .* it takes least$"):
            build(f"{own}:{name}", cache="none")
    else:
        assert same(run(3, f"{own}:{name}"), run(3, "fast-dllm", threshold=0.5))
        with pytest.raises(ValueError, match="has no setting threshold: .*; it takes least, "):
            build(f"{own}:{name}", threshold=0.5)


@pytest.mark.parametrize(
    "name, message",
    [
        ("wrong", "it takes (scores, candidates): a rule takes (scores, candidates, window), a builder settings, each with a default"),
        ("needs", "it takes (least): a rule takes"),
        ("shadows", "one that every strategy has: choose another name"),
        ("untyped", "is no int, float, bool, text or one of a Literal"),
        ("fails", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_neither_a_rule_nor_a_builder_is_refused(own, name, message):
    """Would catch a traceback of the library, and a class or factory that is taken for a rule."""
    with pytest.raises(ValueError) as error:
        register(f"{own}:{name}")
    assert message in str(error.value) and f"{own}:{name}" in str(error.value) and "\n" not in str(error.value)


def test_what_a_builder_gives_back_is_checked(own):
    """Would catch an AttributeError, and a builder that is refused because its defaults alone will not do."""
    for name in ("nothing", "unset", "builder"):
        register(f"{own}:{name}")
    for name, given, message in (
        ("nothing", {}, f"what {own}:nothing gives back is None, expected a rule or a Strategy"),
        ("unset", {}, "file is '', expected a name"),
        ("builder", {"least": 0.95}, "least is 0.95, expected at most 0.9"),
        ("builder", {"cache": "all"}, "cache is 'all', expected one of none, prefix, dual"),
    ):
        with pytest.raises(ValueError) as error:
            build(f"{own}:{name}", **given)
        assert str(error.value).startswith(message)
    assert build(f"{own}:unset", file="x").rule


def test_a_file_is_asked_for_a_name(own, tmp_path):
    """Would catch a file for a strategy that is said to be unknown, and the traceback of a name that is too long for a file."""
    for name, message in ((own, "name the rule, or its builder"), (f"{'a' * 300}.py:rule", "there is no file")):
        with pytest.raises(ValueError, match=message):
            register(name)


SHORT = ["--prompt", "hello", "--gen-length", "8", "--block-length", "8", "--strategy"]


def told(capsys, *arguments) -> tuple[str | int | None, str]:
    """How the program ends, and what it says on stderr."""
    code = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


def test_settings_of_ones_own_are_flags(own, saved, capsys):
    """Would catch flags that are made before the file is read, and a mistake that is not one line."""
    assert told(capsys, "--model", saved, *SHORT, f"{own}:builder", "--least", "0.7", "--cache", "none")[0] == 0
    for arguments, message in (
        (["--least", "0.95"], "least is 0.95, expected at most 0.9"),
        (["--least", "x"], "argument --least: invalid float value: 'x'"),
        (["--threshold", "0.5"], "has no setting threshold"),
    ):
        code, err = told(capsys, "--model", saved, *SHORT, f"{own}:builder", *arguments)
        assert code == 2 and err.count("\n") == 1 and err.startswith("dllm.py: ") and message in err
    assert contender(f"{own}:builder:least=0.7").settings == {"least": 0.7}


def test_the_traceback_of_an_error_begins_in_the_file(own, saved, capsys):
    """Would catch 25 lines of the decoder before the one that counts, and an error without its place because it is a ValueError."""
    code, _ = told(capsys, "--model", saved, *SHORT, f"{own}:faulty")
    files = [line.split('"')[1] for line in code.splitlines() if line.startswith("  File ")]
    assert files == [own, own] and code.endswith("ValueError: too many values to unpack (expected 2)")
    code, _ = told(capsys, "--model", saved, *SHORT, f"{own}:caught", "--least", "0.6")
    assert code.count("  File ") == 1 and code.endswith("division by zero")


def test_other_errors_are_those_of_the_program(own):
    """Would catch a fault of the program that is shown as one of the file, or not at all."""
    with pytest.raises(ZeroDivisionError), faults():
        1 / 0
