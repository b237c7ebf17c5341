"""The benchmark measures what it says: every rule beside theory, one line for bad input. Forwards: tests/test_speed.py."""

import re
import subprocess
import sys

import pytest

from lab import bench
from lab.oracle import LANGUAGES
from test_compare import stop_at


def test_oracle_compares_every_rule_with_theory(capsys):
    """Would catch a language or a rule that is left out, and validity counted on the wrong cells."""
    bench.main(["oracle", "--limit", "40", "--length", "4"])
    lines = capsys.readouterr().out.splitlines()[4:]
    table = {line.split()[1]: [float(x) for x in re.findall(r"([\d.]+)%", line)] for line in lines}
    assert list(table) == list(LANGUAGES)
    assert all(len(cells) == 1 + len(bench.RULES) for cells in table.values())
    assert table["alternate"][0] == 12.5 and table["bits"] == [100.0] * 8
    assert all(cells[1 + list(bench.RULES).index("one by one")] == 100.0 for cells in table.values())


def test_ctrl_c_shows_the_languages_that_are_done(capsys, monkeypatch):
    """Would catch a traceback, and rows that are lost."""
    stop_at(monkeypatch, bench, "generate", len(bench.RULES) + 3)
    with pytest.raises(SystemExit) as exit:
        bench.main(["oracle", "--limit", "2", "--length", "4"])
    out, err = capsys.readouterr()
    assert exit.value.code == 130 and err == "lab.bench: stopped; a table holds what was done till then\n"
    assert [line.split()[1] for line in out.splitlines()[4:]] == [next(iter(LANGUAGES))]


def test_it_runs_from_any_folder(tmp_path):
    """Would catch a program that finds its modules in one folder only."""
    command = [sys.executable, bench.__file__, "oracle", "--limit", "1", "--length", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "permutation" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: command"),
        (["oracle", "--limit", "0"], "argument --limit: '0' is not a whole number of at least 1"),
        (["compare", "--device", "warp"], "unknown device 'warp'"),
        (["oracle", "--limit", "9" * 12], "runs at once need"),
        (["oracle", "--lenght", "4"], "did you mean --length?"),
        (["oracle", "--length", "9"], "no oracle for 'permutation-9'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    """Would catch a traceback after minutes of measuring."""
    with pytest.raises(SystemExit) as exit:
        bench.main(arguments)
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "") and err.count("\n") == 1 and message in err
