"""The course grades what students hand in: stubs, solutions, and answers that are plausible and wrong."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course import __main__ as program
from course import grading, process
from course.grading import grade, grader
from program import PROCESSES

ROOT = Path(__file__).parent.parent
COURSE, SOLUTIONS = ROOT / "course", ROOT / "course" / "solutions"
STEMS = sorted(file.stem for file in COURSE.glob("[0-9][0-9]_*.py"))
exercise = pytest.mark.parametrize("stem", STEMS)
DOUBT, COUNT = "scores.doubt.masked_fill(~candidates, inf)", "(masks + window.remaining - 1) // window.remaining"
ENDLESS = "has computed for 0.5 s: an endless loop? It was at"  # instead of 3

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
    ("02_threshold", "(scores.confidence >= threshold)", "(scores.confidence > threshold)",
     "properties", "exactly as sure as the threshold"),
    ("02_threshold", "candidates & (scores.confidence", "(scores.confidence", "properties", "what is sure is no candidate"),
    ("02_threshold", "~sure.any(-1, keepdim=True)", "~sure.any()", "properties", "each line asks for itself"),
    ("02_threshold", "window.must.reshape(-1, 1) & ", "", "properties", "a block that need not move writes nothing"),
    ("02_threshold", "window.must.reshape(-1, 1)", "window.must", "properties", "RuntimeError: The size of tensor a (2) must match"),
    ("02_threshold", "(rank(scores.doubt, candidates) == 0)", "(scores.doubt == scores.doubt.amin(-1, keepdim=True))",
     "properties", "what is sure is no candidate"),
    ("02_threshold", "sure | stuck & (rank(scores.doubt, candidates) == 0)", "sure", "worked table", "none is sure enough: the surest"),
    ("02_threshold", "== 0)", "== 0).nonzero()", "worked table", "RuntimeError"),
    ("02_threshold", "    return sure", "    scores.confidence\n    candidates &= sure\n    return sure",
     "worked table", "changed candidates, which"),
    ("03_factor", "candidates) + 1", "candidates)", "worked table", "1.20 for the fourth"),
    ("03_factor", "<= factor", "< factor", "properties", "2 (1 - 0.5) is not more than 1"),
    ("03_factor", "rank(scores.doubt, candidates)", "rank(scores.doubt, candidates | True)", "properties", "two masks are left"),
    ("03_factor", "rank(scores.doubt, candidates)", "rank(scores.doubt.flip(-1), candidates.flip(-1)).flip(-1)",
     "properties", "left ones are surer"),
    ("03_factor", "(1 - scores.confidence)", "scores.doubt", "properties", "2 (1 - 0.5) is not more than 1"),
    ("03_factor", "<= factor)", "<= factor) | (r == candidates.sum(-1, keepdim=True)) & (r == 2)",
     "properties", "the authors' code writes it"),
    ("03_factor", "rank(scores.doubt, candidates) + 1",
     "rank(scores.doubt.reshape(1, -1), candidates.reshape(1, -1)).view_as(candidates) + 1",
     "properties", "each line has its own places"),
    ("03_factor", "<= factor)", "<= 1)", "properties", "a factor of 2"),
    ("04_local_leap", "<= radius", "< radius", "properties", "an anchor reaches `radius` cells"),
    ("04_local_leap", "<= radius", "<= radius + 1", "worked table", "of 1, 2, 4, 5 only 0.80 and 0.70"),
    ("04_local_leap", "candidates & (scores", "(scores", "properties", "what is written already is no anchor"),
    ("04_local_leap", ".abs() <= radius", " % 8 <= radius", "properties", "to either side"),
    ("04_local_leap", ".abs() <= radius", ".abs().clamp(max=radius) <= radius", "worked table", "0 and 3 are anchors"),
    ("04_local_leap", "(cells[:, None] - cells).abs()",
     "torch.minimum((cells[:, None] - cells) % 8, (cells - cells[:, None]) % 8)", "worked table",
     "0 and 3 are anchors"),
    ("04_local_leap", "(anchors[:, None] & close).any(-1)", "(anchors.any(0) & close).any(-1)",
     "properties", "a line is no neighbour of another"),
    ("04_local_leap", "    near = ",
     "    anchors = (anchors[:, None] & close).any(-1) & candidates & (scores.confidence >= relaxed_threshold)\n    near = ",
     "worked table", "0 and 3 are anchors"),
    ("04_local_leap", "return scores.confidence >= ", "return scores.confidence > ", "properties", "0.5 is at least 0.5"),
    ("04_local_leap", "(cells[:, None] - cells).abs() <= radius", "torch.ones(8, 8).triu(-radius).tril(radius) > 0",
     "goldens", "RuntimeError"),
    ("04_local_leap", "return scores.confidence >= torch.where(near, relaxed_threshold, threshold)",
     "return torch.where(near, scores.confidence >= relaxed_threshold, anchors).long()", "worked table",
     "returned int64 [1, 8]; expected bool"),
    ("05_adaptive", "window.age > 0", "True", "properties", "the first forward of a block has the plain threshold"),
    ("05_adaptive", "window.age > 0", "window.age == 1", "properties", "later ones have another"),
    ("05_adaptive", "(masks + kept) / (candidates.shape[-1] + kept)", "masks / candidates.shape[-1]", "properties", "8 slots kept"),
    ("05_adaptive", "(masks + kept)", "masks", "properties", "8 slots kept"),
    ("05_adaptive", "candidates.sum(-1, keepdim=True)", "candidates.sum() / len(candidates)", "properties", "each line has its own share"),
    ("05_adaptive", "(1 - share)", "share", "worked table", "six of eight are masked"),
    ("05_adaptive", ">= threshold *", "> threshold *", "properties", "0.5 is at least 0.5"),
    ("05_adaptive", "candidates.shape[-1] + kept", "8 + kept", "goldens", "In forward 34 they part"),
    ("06_validity", "half[: length // 2]", "half", "languages", "palindromes(3) has 4 strings; one of them is 'AAAA', of 4 cells"),
    ("06_validity", "[::-1]", "", "languages", "one is none of them"),
    ("06_validity", '"AB", repeat=(length + 1) // 2', '"ABA", repeat=(length + 1) // 2',
     "languages", "is there 2 times, which makes it likelier"),
    ("06_validity", "yield half + half", "while True:\n            yield half + half", "languages", "has 1000 strings and more"),
    ("06_validity", "range(length)]", "range(length - 1)]", "languages", "lone(2) has 1 strings and lacks 'AB'"),
    ("06_validity", "0.5 ** (length // 2)", "0.5 ** ((length + 1) // 2)",
     "the real loop", "palindromes_validity(3) is 0.25: 500 of 2000 strings"),
    ("06_validity", "(1 - 1 / length) ** (length - 1)", "length / 2**length", "the real loop", "lone_validity(3) is 0.375"),
    ("06_validity", "(1 - 1 / length) ** (length - 1)", "(1 - 1 / length) ** (length - 1) / length",
     "the real loop", "lone_validity(2) is 0.25"),
    ("06_validity", "return (1 - 1 / length) ** (length - 1)", "return 1 / 2.718281828 if length > 5 else (1 - 1 / length) ** (length - 1)",
     "numbers", "lone_validity(10) is 0.36787944: close to the count"),
    ("06_validity", "return 0.5", "return 100 * 0.5", "the real loop", "the number is 50; expected a float from 0 to 1"),
    ("07_safe_threshold", "1 / 2  #", "1 / length  #", "just above, none fails", "permutation(3) is 0.3333. With a threshold of 0.3343"),
    ("07_safe_threshold", "1 / 2  #", "1.0  #", "just below, some fail", "permutation(3) is 1, but with a threshold just below"),
    ("07_safe_threshold", "1 / 4", "1 / 2", "just below, some fail", "echo(3) is 0.5, but with a threshold just below"),
    ("07_safe_threshold", "1 - 1 / length", "1 / length", "just above, none fails", "lone(3) is 0.3333. With a threshold of 0.3343"),
    ("07_safe_threshold", "1 - 1 / length", "1 / 2", "just above, none fails", "lone(3) is 0.5. With a threshold of 0.501"),
    ("07_safe_threshold", "return 1 / 4", "return 4", "just below, some fail", "the number is 4; expected a float from 0 to 1"),
    ("08_caches", "S = s.x.shape[1]", "S = s.x.shape[0]", "worked table", "in the block's first forward all is computed"),
    ("08_caches", "window.age == 0", "window.start == 4", "worked table", "in the block's first forward all is computed"),
    ("08_caches", "window.age == 0", "window.age <= 1", "worked table", "then, inside the block"),
    ("08_caches", "slice(window.start, window.end)", "slice(window.start, window.end - 1)", "worked table", "dual: then, inside the block"),
    ("08_caches", "slice(window.start, window.end)", "slice(window.start, S)", "worked table", "dual: then, inside the block"),
    ("08_caches", "return Pass(query, slice(0, S))", "return Pass(query)", "worked table", "`visible` is None: nothing is cached."),
    ("08_caches", "return Pass(query, slice(0, S))", "return Pass(query, query)", "worked table", "dual: then, inside the block"),
    ("08_caches", "return Pass(query, slice(0, S))", "return query", "worked table", "returned a slice; expected a Pass"),
    ("08_caches", "slice(window.start, window.end)", "slice(window.start, None)", "worked table", "expected a slice with both ends"),
    ("08_caches", "return Pass(slice(first", "s.x[:, window.start] = 0\n    return Pass(slice(first",
     "worked table", "prefix changed s.x, which"),
    ("01_quota", "return place < count", "while True:\n        place = place + 1", "worked table", f"{ENDLESS} 01_quota.py:1"),
]  # fmt: skip

# the same, where it stays right
RIGHT = [
    ("01_quota", "(masks + window.remaining - 1) // window.remaining", "-(-masks // window.remaining)"),
    ("02_threshold", "~sure.any(-1, keepdim=True)", "(candidates | True)"),  # the surest is among those that are sure
    ("03_factor", "candidates & (", "("),  # what is no candidate does not count
    ("04_local_leap", "(anchors[:, None] & close).any(-1)",
     "torch.nn.functional.max_pool1d(anchors.float()[:, None], 2 * min(radius, 8) + 1, 1, min(radius, 8))[:, 0] > 0"),
    ("05_adaptive", "alpha if window.age > 0 else 0.0", "alpha * bool(window.age)"),
    ("06_validity", "return [\"A\" * i + \"B\" + \"A\" * (length - 1 - i) for i in range(length)]",
     "yield from (\"A\" * i + \"B\" + \"A\" * (length - 1 - i) for i in range(length))"),
    ("08_caches", "Pass(slice(first, S), ", "Pass(s.x.new_ones(S).cumsum(0)[first:] - 1, "),
]  # fmt: skip


@pytest.fixture
def impatient(monkeypatch):
    """A call may compute for half a second: a test need not wait for three."""
    monkeypatch.setattr(grading, "SECONDS", 0.5)


@pytest.fixture
def forked(monkeypatch):
    """What grades is forked from a process that has loaded torch: it begins in 0.1 s instead of 3."""
    monkeypatch.setattr(process.multiprocessing, "get_context", lambda how: PROCESSES)


@functools.cache
def solution(stem: str) -> dict:
    """The grade of a solution, which nobody may change."""
    return grade(SOLUTIONS / f"{stem}.py")


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
    found = solution(stem)
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
def test_a_wrong_answer_is_told_what_is_wrong(stem, old, new, check, message, tmp_path, request):
    """Would catch a trap that an answer walks over, and a message that says something else."""
    if ENDLESS in message:
        request.getfixturevalue("impatient")
    found = grade(changed(tmp_path, stem, old, new))
    assert (found["status"], found["check"]) == ("failed", check), found
    assert message in found["message"]


@pytest.mark.parametrize("stem, old, new", RIGHT, ids=lambda value: value[:30])
def test_another_right_answer_passes(stem, old, new, tmp_path):
    """Would catch a grader that asks for the project's own way."""
    found = grade(changed(tmp_path, stem, old, new))
    assert found["status"] == "passed", found["message"]


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
        shutil.copy(source / "10_block_mask.py", folder / name)
    (folder / "cy" / "10_block_mask.py").write_text("import torch\n\ntorch.sys.exit.__self__\ntorch.os._exit(7)\n")
    return folder


def test_a_class_is_a_table(classroom):
    """Would catch one student's file that ends the grading of all."""
    ended = run(10, "--in", classroom, "--json")
    found = json.loads(ended.stdout)
    assert ended.returncode == 1 and [line.split() for line in program.table(found).splitlines()[:4]] == [
        ["10", "passed"],
        ["ann", ".", "0"],
        ["bob", "+", "1"],
        ["cy", "x", "0"],
    ]
    assert found["bob"][0]["score"]["rows"][0] == found["bob"][0]["score"]["rows"][1]
    assert found["cy"][0]["message"] == "its process ended with code 7"


def test_a_file_that_waits_is_ended(forked, tmp_path, monkeypatch):
    """Would catch a grader that waits with it: what only sleeps, or catches what is to end it, uses up no limit of computing."""
    monkeypatch.setattr(process, "PATIENCE", 1)
    file = tmp_path / "01_quota.py"
    file.write_text("import time\n\ntime.sleep(3600)\n")
    (found,) = process.graded([file])
    assert (found["status"], found["check"]) == ("failed", "loads") and "ended after 1 s: an endless loop, or a wait?" in found["message"]


def told_of(tmp_path: Path, *texts: str) -> list[dict]:
    """Grades of a quota each, one after the other in one process."""
    files = [tmp_path / f"{n}" / "01_quota.py" for n in range(len(texts))]
    for file, text in zip(files, texts):
        file.parent.mkdir()
        file.write_text(f"import torch\n\n\n{text}")
    return list(process.graded(files))


def test_what_a_file_does_to_its_process_is_no_other_files_grade(forked, tmp_path):
    """Would catch a fork that hands in a grade of its own, as the next file's; defaults of torch that stay; an exit code that is lost."""
    rule = "def quota(scores, candidates, window):\n    return "
    settings = "torch.set_default_dtype(torch.float64)\ntorch.set_default_device('meta')\ntorch.set_grad_enabled(False)\n"
    forks, sets, asks, ends = told_of(
        tmp_path,
        f"torch.os.fork()\n{rule}'of the first'",
        f"{settings}{rule}0",
        f"{rule}torch.ones(1) if torch.is_grad_enabled() else 0",
        f"torch.os._exit(7)\n{rule}0",
    )
    assert "returned a str" in forks["message"] and "returned a int" in sets["message"]
    assert "returned float32 [1]" in asks["message"] and "ended with code 7" in ends["message"]


def test_what_a_file_says_does_no_harm_to_a_terminal(tmp_path, capfd):
    """Would catch a message that no terminal can print, which ends the grading of a class, and a log of gigabytes."""
    rule = "def quota(scores, candidates, window):\n    "
    half, colour, long, name, _ = told_of(
        tmp_path,
        f"{rule}raise ValueError('\\ud800')",
        f"{rule}raise KeyboardInterrupt('\\x1b[31m')",
        f"{rule}raise ValueError('x' * 10**6)",
        f"{rule}return type('\\x1b[31mX', (), {{}})()",
        f"print('\\x1b[31m', 'y' * 10**6)\n{rule}return None",
    )
    for grade_ in (half, colour, long, name):
        assert grade_["status"] == "failed" and len(grade_["message"]) < 5000, grade_
        assert grade_["message"].encode() and "\x1b" not in grade_["message"]
    assert "KeyboardInterrupt" in colour["message"] and "[31mX; expected bool" in name["message"]
    shown = capfd.readouterr().err
    assert "\x1b" not in shown and "yyy" in shown and len(shown) < 25_000 and "more than 20000 characters" in shown


@pytest.mark.parametrize("text, message", [
    ("def quota(scores, candidates):\n    return candidates\n", "01_quota.py: TypeError: quota() takes 2 positional arguments but 3"),
    ("def quota(scores, candidates, window):\n    return candidates.to_sparse()\n", "01_quota.py: NotImplementedError: Could not run"),
    ("def quota(scores, candidates, window):\n    return candidates.to('meta').tolist()\n", "NotImplementedError: Cannot copy"),
])  # fmt: skip
def test_an_error_of_another_place_is_told_in_a_line(text, message, tmp_path):
    """Would catch frames of the grader, and an error of torch that is taken for a stub's."""
    file = tmp_path / "01_quota.py"
    file.write_text(text)
    found = grade(file)
    assert found["status"] == "failed" and message in found["message"], found
    assert "course/" not in found["message"]


def test_a_python_without_pytorch_is_told_so(monkeypatch, capsys):
    """Would catch twenty tracebacks, and each exercise failed, for one environment that is not active."""
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        program.main(["1"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "has no PyTorch: is the environment active?" in error and error.count("\n") == 1


def test_one_exercise_of_one_student(forked, classroom, tmp_path, capsys):
    """Would catch an exit code that says passed, and a page that is not written."""
    ask = lambda name: (program.main(["10", "--in", str(classroom / name)]), capsys.readouterr().out)
    (code, told), (not_begun, why) = ask("bob"), ask("ann")
    assert code == 0 and "Passed. right" in told
    assert not_begun == 1 and "this is for you to write" in why
    assert program.main(["--page", str(tmp_path / "p.html"), "10", "--in", str(classroom / "bob")]) == 0
    assert "the project's" in (tmp_path / "p.html").read_text()


def test_what_cannot_be_asked(tmp_path, capsys):
    """Would catch a traceback."""
    for arguments, message in [
        (["99"], "exercise is '99', expected one of 1, "),
        (["--in", tmp_path / "no"], "there is no such folder"),
        (["--in", tmp_path], "neither exercises there, nor folders of students"),
        (["1", "--page", "p.txt"], "expected a name that ends in .html"),
        (["1", "--page", tmp_path / "p.html"], "not begun"),
        (["1", "--page", tmp_path / "no" / "p.html", "--in", SOLUTIONS], "there is no folder"),  # before it decodes
        (["1", "2", "--page", "p.html"], "expected one exercise"),
        (["--what"], "unrecognized arguments: --what"),
    ]:
        with pytest.raises(SystemExit) as ended:
            program.main(list(map(str, arguments)))
        error = capsys.readouterr().err
        assert ended.value.code == 2 and message in error and error.count("\n") == 1, error
