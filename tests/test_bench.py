"""The benchmark measures what it says: every rule beside theory, one line for bad input. Forwards: tests/test_speed.py."""

import re

import pytest

from lab import bench
from lab.oracle import LANGUAGES


def test_oracle_compares_every_rule_with_theory(capsys):
    """Would catch a language or a rule that is left out, and validity counted on the wrong cells."""
    bench.main(["oracle", "--limit", "40", "--length", "4"])
    lines = capsys.readouterr().out.splitlines()[4:]
    table = {line.split()[1]: [float(x) for x in re.findall(r"([\d.]+)%", line)] for line in lines}
    assert list(table) == list(LANGUAGES)
    assert all(len(cells) == 1 + len(bench.RULES) for cells in table.values())
    assert table["alternate"][0] == 12.5 and table["bits"] == [100.0] * 8
    assert all(cells[1 + list(bench.RULES).index("one by one")] == 100.0 for cells in table.values())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: command"),
        (["oracle", "--limit", "0"], "argument --limit: '0' is not a whole number of at least 1"),
        (["compare", "--device", "warp"], "unknown device 'warp'"),
        (["oracle", "--length", "9"], "no oracle for 'permutation-9'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    """Would catch a traceback after minutes of measuring."""
    with pytest.raises(SystemExit) as exit:
        bench.main(arguments)
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "") and err.count("\n") == 1 and message in err
