"""Exercises 9 to 14, the bugs, the leaderboard, the errata and the figures of the course; what all exercises share is in test_course.py."""

import json
import re
import shlex
import shutil
import xml.dom.minidom
from pathlib import Path

import pytest

from course import figures, rank
from course.__main__ import main
from course.grade.bugs import MUTANTS
from course.grading import grade
from test_course import COURSE, ENDLESS, ROOT, SOLUTIONS, changed, forked, impatient  # noqa: F401
from test_docs import PAGES

BUGS = sorted(file.stem for file in (COURSE / "bugs").glob("*.py"))
bug = pytest.mark.parametrize("stem", BUGS)

# exercise, a part of its solution, what stands there instead, the check that fails, a part of its message
WRONG = [
    ("09_pruned_suffix", "window.end + window_size + 1)", "window.end + window_size)", "worked table",
     "the next 3 slots behind the block stay"),
    ("09_pruned_suffix", "window.end + window_size + 1)", "window.end + window_size + 2)",
     "worked table", "the next 3 slots behind the block stay"),
    ("09_pruned_suffix", "    kept[-1] = slots - 1\n", "", "worked table", "and the last"),
    ("09_pruned_suffix", "None if at.visible is None else kept", "kept", "properties", "`visible` was None"),
    ("09_pruned_suffix", "None if at.visible is None else kept", "at.visible", "worked table", "visible: the next 3"),
    ("09_pruned_suffix", "kept >= at.query.start", "kept >= window.start", "properties", "in a block's first forward"),
    ("09_pruned_suffix", " & (kept < at.query.stop)", "", "properties", "a dual cache computes the block alone"),
    ("09_pruned_suffix", "window_size is None or ", "", "properties", "TypeError"),
    ("09_pruned_suffix", "torch.arange(window.end + window_size + 1)", "torch.arange(window.end + window_size + 1.0)", "worked table",
     "expected a slice with both ends or int64 [n]"),
    ("09_pruned_suffix", "kept[-1] = slots - 1", "kept[-1] = slots - 1\n    kept = kept.flip(0)",
     "worked table", "expected each once, in order"),
    ("09_pruned_suffix", "window.suffix <= window_size + 1", "window.suffix <= window_size + 2", "properties", "one slot more than that"),
    ("10_block_mask", "number[first:, None] >= number", "number[first:, None] <= number", "worked table", "line 0: what slot 0 sees"),
    ("10_block_mask", "number[first:, None] >= number", "(number[:, None] >= number).T[first:]",
     "worked table", "line 0: what slot 0 sees"),
    ("10_block_mask", "number[first:, None] >= number", "torch.arange(end)[first:, None] >= torch.arange(end)",
     "worked table", "what slot 0 sees"),
    ("10_block_mask", ".clamp(min=-1)", "", "properties", "longer than a block is one"),
    ("10_block_mask", "position.clamp(min=-1)", "(position + prompt_length)", "properties", "longer than a block is one"),
    ("10_block_mask", "number[first:, None]", "number[:, None]", "worked table", "returned bool [4, 4]; expected bool [2, 4]"),
    ("10_block_mask", ">= number", "> number", "worked table", "what slot 0 sees"),
    ("10_block_mask", "number[first:, None] >= number", "(number[first:, None] >= number).float()",
     "worked table", "returned float32 [6, 6]"),
    ("10_block_mask", "Pass(slice(window.final,", "Pass(slice(window.start,", "properties", "of these slots it is bool"),
    ("10_block_mask", "slice(0, window.end), mask", "slice(window.final, window.end), mask",
     "properties", "of these slots it is bool [4, 4]"),
    ("11_pipeline", "last >= add", "last > add", "properties", "the first opens"),
    ("11_pipeline", "opened < masked.shape[1]", "opened <= masked.shape[1]", "properties", "none is left"),
    ("11_pipeline", " & ~ended", "", "properties", "has written an EOS"),
    ("11_pipeline", "~ended", "~ended.any()", "properties", "each row asks its own"),
    ("11_pipeline", "[:, :-1]", "[:, 1:]", "worked table", "must_move: three blocks"),
    ("11_pipeline", ">= act", ">= 0", "worked table", "must_move: three blocks"),
    ("11_pipeline", "opened[:, None]", "opened.max().expand(len(opened), 1)", "properties", "opened as many as they have"),
    ("11_pipeline", "torch.ones", "torch.zeros", "worked table", "must_move: three blocks"),
    ("11_pipeline", "(~masked).float().mean(-1)", "(~masked).all(-1).float()", "worked table", "must_move: three blocks"),
    ("11_pipeline", "(~masked)", "masked.logical_not_()", "worked table", "changed masked, which it was handed"),
    ("11_pipeline", "[:, 0]  # [b]", "  # [b]", "worked table", "may_open returned bool [1, 1]; expected bool [1]"),
    ("12_sft_loss", "draws < t[:, None]", "draws < t", "properties", "of example 1, t = 0.9"),
    ("12_sft_loss", "draws < t[:, None]", "draws <= t[:, None]", "properties", "of example 0, t = 0.5"),
    ("12_sft_loss", "masked_fill(", "masked_fill_(", "worked table", "changed answer, which it was handed"),
    ("12_sft_loss", " / t[:, None]).mean()", ").mean()", "worked table", "two of four are masked"),
    ("12_sft_loss", " / t[:, None]).mean()", " / t).mean()", "properties", "an example with few masks"),
    ("12_sft_loss", ".mean()", ".sum() / masked.sum()", "worked table", "two of four are masked"),
    ("12_sft_loss", ".mean()", ".sum()", "worked table", "two of four are masked"),
    ("12_sft_loss", "entropy * masked", "entropy", "worked table", "two of four are masked"),
    ("12_sft_loss", ".mean()", ".mean().item()", "worked table", "returned a float; expected float32 []"),
    ("12_sft_loss", ".mean()", ".mean().detach()", "properties", "no gradient flows"),
    ("13_eb_sampler", ".roll(1, -1)", "", "worked table", "so three are written"),
    ("13_eb_sampler", "scores.entropy", "scores.doubt", "worked table", "so three are written"),
    ("13_eb_sampler", "before <= gamma", "before < gamma", "properties", "gamma 0 writes one token"),
    ("13_eb_sampler", "torch.zeros_like(candidates).scatter(1, order, fits)", "fits", "worked table", "so three are written"),
    ("13_eb_sampler", "scores.entropy", "(scores.entropy / 0.6931)", "properties", "what is written already adds nothing"),
    ("13_eb_sampler", "entropy.cumsum(-1)", "entropy.sum(0).expand_as(entropy).cumsum(-1)",
     "properties", "a line without masks writes nothing"),
    ("13_eb_sampler", "    return", "    while fits.any():\n        pass\n    return", "worked table", f"{ENDLESS} 13_eb_sampler.py:1"),
    ("14_own_rule", "torch.where(beside, 0.6, 0.9)", "0.85", "no plain threshold", "it is a plain threshold"),
    ("14_own_rule", "scores.confidence >= torch.where(beside, 0.6, 0.9)", "candidates.clone()",
     "no plain threshold", "it is a plain threshold"),
    ("14_own_rule", "where(beside,", "where(beside.float().mean() > 0.5,", "a rule", "has another answer alone"),
    ("14_own_rule", "torch.where(beside, 0.6, 0.9)", "torch.rand(())", "a rule", "has another answer asked again"),
    ("14_own_rule", "0.6, 0.9", "0.1, 0.3", "exam", "expected at least 90"),
    ("14_own_rule", "torch.where(beside, 0.6, 0.9)", "torch.where(beside, 0.8, 0.9999)", "exam", "threshold=0.99:eos=stop is right in 98"),
]  # fmt: skip


@pytest.mark.parametrize("stem, old, new, check, message", WRONG, ids=lambda value: value[:30])
def test_a_wrong_answer_is_told_what_is_wrong(stem, old, new, check, message, tmp_path, request):
    """Would catch a trap that an answer walks over, and a message that says something else."""
    if ENDLESS in message:
        request.getfixturevalue("impatient")
    found = grade(changed(tmp_path, stem, old, new))
    assert (found["status"], found["check"]) == ("failed", check), found
    assert message in found["message"]


# --- bugs


@bug
def test_a_bug_is_not_begun_and_its_solution_finds_it_and_no_other(stem):
    """Would catch a bug that is handed out found, a mutant that is none, and reference properties that cannot tell bugs apart."""
    found = grade(COURSE / "bugs" / f"{stem}.py")
    assert found["status"] == "not begun" and "this is for you to write" in found["message"]
    found = grade(SOLUTIONS / "bugs" / f"{stem}.py")
    assert found["status"] == "passed", found["message"]
    assert found["score"] == {"bugs that break it": [1, 1], "others": ""}


@bug
def test_no_text_that_a_student_reads_gives_a_solution_away(stem):
    """Would catch a line of a reference property, or what the mutant changes, in a stub or in another's text."""
    lines = (SOLUTIONS / "bugs" / f"{stem}.py").read_text().splitlines()
    lines = {line.strip() for line in lines if len(line.strip()) > 30 and not line.startswith(("from", '"""'))}
    hidden = lines | {text for change in MUTANTS[stem[:2]].changes.items() for text in change if len(text) > 12}
    shown = [file.read_text() for file in (*COURSE.glob("*.py"), *COURSE.glob("bugs/*.py"), COURSE / "README.md")]
    assert lines and not [text for text in hidden for page in shown if text in page]


@pytest.mark.parametrize(
    "body, check, message",
    [
        ("return True", "finds the bug", "True with the bug, too"),
        ("return False", "holds for the decoder", "no bug is needed"),
        (
            "return generate(model, [1], gen_length=32).tokens.sum() > 0",
            "holds for the decoder",
            "returned bool []; expected True or False",
        ),
        ("pass", "holds for the decoder", "None: is a `return` missing?"),
        ("while True:\n        pass", "holds for the decoder", ENDLESS),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_property_that_says_nothing_is_told_so(body, check, message, tmp_path):
    """Would catch a grade for a property that is always true, or never."""
    file = tmp_path / "b1_sampled.py"
    file.write_text(f"from dllm import generate\n\n\ndef holds(model):\n    {body}\n")
    found = grade(file)
    assert (found["status"], found["check"]) == ("failed", check) and message in found["message"], found


def test_a_property_that_everything_breaks_is_told_so(tmp_path):
    """Would catch a snapshot of the decoder, which finds every bug and explains none. Control for what is said of others above."""
    stems = [stem for stem in BUGS if stem[:2] in ("b1", "b2", "b4", "b6")]  # which decode least
    parts = [(SOLUTIONS / "bugs" / f"{stem}.py").read_text().replace("def holds", f"def {stem}") for stem in stems]
    file = tmp_path / "b1_sampled.py"
    file.write_text("\n\n".join(parts) + f"\n\ndef holds(model):\n    return all(f(model) for f in ({', '.join(stems)}))\n")
    found = grade(file)
    assert found["check"] == "no other" and "it is False for b2, b4, b6, too" in found["message"], found


@pytest.mark.usefixtures("forked")
def test_a_bug_is_asked_for_by_its_name(tmp_path, capsys):
    """Would catch a number that is no exercise's, and a student's folder in which bugs are not found."""
    (tmp_path / "bugs").mkdir()
    shutil.copy(SOLUTIONS / "bugs" / "b6_fast_prompts.py", tmp_path / "bugs")
    assert main(["b6", "--in", str(tmp_path)]) == 0
    assert "Bug b6: tokens per second grow" in capsys.readouterr().out


# --- the leaderboard


def test_the_board_is_of_this_project():
    """Would catch a figure without its commit, and a board that lacks a strategy or the exam."""
    kept = rank.saved()
    assert re.fullmatch("[0-9a-f]{7,}", kept["commit"]) and kept["asked"] == rank.ASKED
    assert list(kept["board"]) == [f"{text}:eos=stop" for text in rank.CONTENDERS]
    assert list(kept["exam"]) == [f"{text}:eos=stop" for text in rank.THRESHOLDS]


def test_figures_of_the_board_are_measured_alike():
    """Would catch a board that was made with other stories or settings than a rule is measured with."""
    label = rank.THRESHOLDS[2]
    rule = rank.contends("mine", lambda scores, candidates, window: scores.confidence >= 0.9)
    both = rank.measure([rule, rank.contender(f"{label}:eos=stop")], limit=3)
    assert both["mine"] == both[f"{label}:eos=stop"]


def test_the_front_is_what_nothing_dominates():
    """Would catch a front that counts one figure alone, or of which equals throw each other out."""
    board = {
        name: {"right": r, "forwards": f, "rows": w}
        for name, r, f, w in (("a", 97, 2, 9), ("b", 97, 2, 9), ("c", 97, 3, 9), ("d", 90, 9, 1))
    }
    assert rank.front(board) == {"a", "b", "d"}


def test_a_rule_is_ranked(monkeypatch, capsys, tmp_path):
    """Would catch a rule that is measured and not shown, or told to be where it is not."""
    kept = rank.ASKED | {"limit": 1}
    monkeypatch.setattr(rank, "ASKED", kept)
    name = f"{ROOT}/docs/my_rule.py:rule"
    assert main(["rank", name]) == 0
    out = capsys.readouterr().out
    assert f"> {name}" in out and "the Pareto front" in out and rank.saved()["commit"] in out


@pytest.mark.parametrize(
    "text, code, message",
    [
        (None, 2, "expected FILE.py:RULE"),
        ("def other(): pass", 1, "defines no function rule"),
        ("def rule(s, c, w):\n    return None", 1, "None: is a `return` missing?"),
        ("def rule(s, c, w):\n    while True: pass", 1, ENDLESS),
        ("from strategies.streaming import streaming", 1, "What you may import"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_what_cannot_be_ranked_is_told(text, code, message, tmp_path, capsys):
    """Would catch a traceback of the project, or a rule that never returns."""
    file = tmp_path / "mine.py"
    if text:
        file.write_text(text)
    assert rank.main([f"{file}:rule"]) == code
    error = capsys.readouterr().err
    assert message in error and "course/rank.py" not in error


# --- pages


def test_errata_name_tests_and_commands_that_exist():
    """Would catch a test that was renamed, or a row that nothing shows."""
    page = (ROOT / "docs" / "errata.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| system", "| method"))]
    assert len(rows) > 50
    for row in rows:
        shown = row.rstrip("| ").rpartition(" | ")[2]
        tests, commands = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown), re.findall(r"`python -m course (\w+)`", shown)
        assert tests or commands, row
        for file, name in tests:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), name
        for number in commands:
            assert list(COURSE.glob(f"{number:0>2}_*.py")) + list(COURSE.glob(f"bugs/{number}_*.py")), number


def test_lessons_have_all_that_a_lesson_has():
    """Would catch a lesson without something to read, run, do or discuss, and an exercise or a bug that no lesson has."""
    page = (COURSE / "README.md").read_text()
    lessons = re.split(r"^## Lesson \d: .*$", page.split("## How long")[0], flags=re.MULTILINE)[1:]
    assert len(lessons) == 8
    for lesson in lessons:
        assert all(f"**{what}**" in lesson for what in ("Read", "Watch", "Do", "Discuss")) and lesson.count("<details>") >= 2
        assert lesson.count("<details>") == lesson.count("</details>") == lesson.count("<summary>")
    done = " ".join(re.search(r"\* \*\*Do\*\*(.*?)\n(\* |$)", lesson, re.DOTALL)[1] for lesson in lessons)
    asked = {int(n) for n in re.findall(r"\b(\d+) \(", done)}
    assert asked == set(range(1, 15)) and {b for b in re.findall(r"\bb\d\b", done)} == set(MUTANTS)


@pytest.mark.parametrize("file", [*sorted(COURSE.glob("[0-9]*.py")), COURSE / "README.md"], ids=lambda file: file.stem)
def test_commands_that_a_student_reads_can_be_run(file, monkeypatch):
    """Would catch a flag or a file that is not there; nothing is decoded."""
    from lab.command_line import command_line  # noqa: F401

    for line in re.findall(r"^ +(python .*)$", file.read_text(), re.MULTILINE):
        words = shlex.split(line)
        if words[1] == "-m":
            assert (ROOT / words[2].replace(".", "/")).exists() or (ROOT / (words[2].replace(".", "/") + ".py")).exists(), line
        else:
            assert words[1] == "dllm.py" and "--prompt" in words, line
        for word in words:
            if word.startswith(("course/", "docs/")):
                assert (ROOT / word.partition(":")[0]).exists(), line


def test_figures_are_made_of_what_they_show(monkeypatch, tmp_path):
    """Would catch a figure that is no SVG, one that was not made again, and one that a dark page cannot show."""
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    figures.main()
    made = sorted(tmp_path.glob("*.svg"))
    assert [file.stem for file in made] == ["loop", "mask", "pipeline", "slots", "tradeoff"]
    for file in made:
        text = file.read_text()
        assert xml.dom.minidom.parseString(text) and "prefers-color-scheme: dark" in text
        assert text == (ROOT / "docs" / "figures" / file.name).read_text(), f"{file.name}: python -m course figures"


def test_the_goldens_of_exercise_13_are_those_of_two_codes():
    """Would catch cases that were lost: ten of each."""
    cases = [json.loads(line) for line in (COURSE / "goldens" / "eb.jsonl").read_text().splitlines()]
    assert len(cases) == 20 and len({case["source"] for case in cases}) == 2


def test_the_pages_of_the_course_are_linked():
    """Would catch a page that nobody finds."""
    readme = (ROOT / "README.md").read_text()
    assert all(link in readme for link in ("course/README.md", "docs/teaching.md", "docs/errata.md"))
    assert {Path(ROOT / "docs" / f"{name}.md") for name in ("teaching", "errata")} <= set(PAGES)
