"""A rule of one's own, FILE.py:RULE, is a strategy like the others."""

import pytest

from lab.own_rule import register
from shared import run, same
from strategies import STRATEGIES, build


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
