"""The course grades what students hand in: stubs, solutions, and answers that are plausible and wrong."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course.grading import grade, grader

ROOT = Path(__file__).parent.parent
COURSE, SOLUTIONS = ROOT / "course", ROOT / "course" / "solutions"
STEMS = sorted(file.stem for file in COURSE.glob("[0-9][0-9]_*.py"))
exercise = pytest.mark.parametrize("stem", STEMS)
DOUBT, COUNT = "scores.doubt.masked_fill(~candidates, inf)", "(masks + window.remaining - 1) // window.remaining"
ENDLESS = "has computed for 3 s: an endless loop? It was at"

# exercise, a part of its solution, what stands there instead, the check that fails, a part of its message
WRONG = [
    ("01_quota", COUNT, "masks // window.remaining", "properties", "two now, rounded up"),
    ("01_quota", COUNT, "8 // window.remaining", "properties", "3 masks in 2 forwards"),
    ("01_quota", "sum(-1, keepdim=True)", "sum()", "properties", "each line counts its own masks"),
    ("01_quota", "place < count", "place <= count", "worked table", "the two surest are written"),
    ("01_quota", DOUBT, "(-scores.confidence).masked_fill(~candidates, inf)", "properties", "in float32 these confidences are all 1.0"),
    ("01_quota", DOUBT, "scores.doubt", "properties", "3 masks in 2 forwards"),
    ("01_quota", DOUBT, "scores.doubt.masked_fill_(~candidates, inf)", "properties", "changed scores.doubt, which it was handed"),
    ("01_quota", "order = ", "order = 7 - ", "worked table", "the two surest are written"),
    ("01_quota", DOUBT, "scores.doubt.masked_fill(~candidates, inf).flip(-1)", "worked table", "the two surest are written"),
    ("01_quota", "place < count", "(place < count).float()", "worked table", "returned float32 [1, 8]; expected bool [1, 8]"),
    ("01_quota", "return place < count", "place < count", "worked table", "None: is a `return` missing?"),
    ("01_quota", "return place < count", "while True:\n        place = place + 1", "worked table", f"{ENDLESS} 01_quota.py:1"),
]  # fmt: skip


def changed(tmp_path: Path, stem: str, old: str, new: str) -> Path:
    """A solution with one part replaced."""
    text = (SOLUTIONS / f"{stem}.py").read_text()
    assert old in text, "no such part"
    file = tmp_path / f"{stem}.py"
    file.write_text(text.replace(old, new))
    return file


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "course", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=600)


# --- what every exercise has


@exercise
def test_a_stub_is_not_begun(stem):
    """Would catch an exercise that is handed out solved, or broken."""
    found = grade(COURSE / f"{stem}.py")
    assert found["status"] == "not begun" and re.fullmatch(rf"{stem}.py:\d+: this is for you to write", found["message"])


@exercise
def test_a_solution_passes(stem):
    """Would catch a check that nobody can pass."""
    found = grade(SOLUTIONS / f"{stem}.py")
    assert found["status"] == "passed", found["message"]
    assert found["passed"] == list(grader(stem).CHECKS)


@exercise
def test_the_projects_own_part_is_refused(stem, tmp_path):
    """Would catch a grade for what the project has written."""
    for name, part in grader(stem).PARTS.items():
        taken = f"from {part.own.__module__} import {part.own.__name__} as {name}\n"
        for text in (taken, f"import {part.own.__module__}\n", "import importlib\n", "eval('1')\n", "from strategies import build\n"):
            file = tmp_path / f"{stem}.py"
            file.write_text(text)
            found = grade(file)
            assert found["status"] == "refused" and f"{stem}.py:1" in found["message"], text


@exercise
def test_an_exercise_says_what_it_is(stem):
    """Would catch an exercise without its minutes, paper, page or hints, or with the hints before the function."""
    text = (COURSE / f"{stem}.py").read_text()
    assert re.match(rf'"""Exercise {int(stem[:2])}, \d+ minutes: .+\.\n', text)
    assert "arXiv" in text and f"python -m course {int(stem[:2])}" in text
    assert text.rindex("raise NotImplementedError") < text.index("# --- hints") < text.index("# 1. ")


# --- what a grade says


@pytest.mark.parametrize("stem, old, new, check, message", WRONG, ids=lambda value: value[:30])
def test_a_wrong_answer_is_told_what_is_wrong(stem, old, new, check, message, tmp_path):
    """Would catch a trap that an answer walks over, and a message that says something else."""
    found = grade(changed(tmp_path, stem, old, new))
    assert (found["status"], found["check"]) == ("failed", check), found
    assert message in found["message"]


def test_a_failure_is_drawn(tmp_path):
    """Would catch cells that do not stand under their numbers, and a mark at another cell."""
    found = grade(changed(tmp_path, "01_quota", "place < count", "place <= count"))
    cell, *_, yours, expected, mark = found["message"].splitlines()[2:]
    assert yours.split()[1:] == list("xx.x....") and expected.split()[1:] == list("x..x....")
    assert cell[mark.index("^")] == "1" and mark.count("^") == 1


def test_a_traceback_begins_in_the_students_file(tmp_path):
    """Would catch a grader that shows itself."""
    found = grade(changed(tmp_path, "01_quota", "place < count", "place < cuont"))
    assert found["message"].splitlines()[0].strip().startswith(f'File "{tmp_path}/01_quota.py"')
    assert found["message"].splitlines()[-1].startswith("NameError: name 'cuont' is not defined")


@pytest.mark.parametrize("text, message", [("def quota(:\n", "01_quota.py:1 is no Python"), ("quota = 1\n", "defines no function quota"),
                                           ("\0", "is no Python"), ("raise SystemExit\n", "SystemExit")])  # fmt: skip
def test_a_file_that_cannot_be_graded(text, message, tmp_path):
    """Would catch a grader that a file ends."""
    file = tmp_path / "01_quota.py"
    file.write_text(text)
    found = grade(file)
    assert found["status"] == "failed" and message in found["message"]


# --- the program


@pytest.fixture(scope="module")
def classroom(tmp_path_factory) -> Path:
    """Three students: one has not begun, one has passed, one ends the process that grades."""
    folder = tmp_path_factory.mktemp("class")
    for name, source in (("ann", COURSE), ("bob", SOLUTIONS), ("cy", COURSE)):
        (folder / name).mkdir()
        shutil.copy(source / "01_quota.py", folder / name)
    (folder / "cy" / "01_quota.py").write_text("import torch\n\ntorch.sys.exit.__self__\ntorch.os._exit(7)\n")
    return folder


def test_a_class_is_a_table(classroom):
    """Would catch one student's file that ends the grading of all."""
    done = run(1, "--in", classroom)
    assert [line.split() for line in done.stdout.splitlines()[:4]] == [
        ["1", "passed"],
        ["ann", ".", "0"],
        ["bob", "+", "1"],
        ["cy", "x", "0"],
    ]
    found = json.loads(run(1, "--in", classroom, "--json").stdout)
    assert found["bob"][0]["score"]["rows"][0] == found["bob"][0]["score"]["rows"][1]
    assert found["cy"][0]["message"] == "its process ended with code 7"


def test_one_exercise_of_one_student(classroom, tmp_path):
    """Would catch an exit code that says passed, and a page that is not written."""
    passed, not_begun = (run(1, "--in", classroom / name) for name in ("bob", "ann"))
    assert passed.returncode == 0 and "Passed. right" in passed.stdout
    assert not_begun.returncode == 1 and "this is for you to write" in not_begun.stdout
    assert run("--page", tmp_path / "p.html", 1, "--in", classroom / "bob").returncode == 0
    assert "the project's" in (tmp_path / "p.html").read_text()


def test_what_cannot_be_asked(tmp_path):
    """Would catch a traceback."""
    for arguments, message in [
        (["99"], "exercise is '99', expected one of 1, "),
        (["--in", tmp_path / "no"], "there is no such folder"),
        (["--in", tmp_path], "neither exercises there, nor folders of students"),
        (["1", "--page", "p.txt"], "expected a name that ends in .html"),
        (["1", "--page", tmp_path / "p.html"], "not begun"),
        (["--what"], "unrecognized arguments: --what"),
    ]:
        done = run(*arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
