"""`compare --data`: problems of a file, what is right, shots, the file of runs that goes on where it was, and how sure the figures are."""

import csv
import io
import json
import re
import signal
from argparse import Namespace
from itertools import islice
from pathlib import Path

import pytest

import program
from conftest import full_disk
from lab import bench, compare, data, figures
from lab.command_line import TINY
from lab.data import NUMBER, Data, found
from lab.tasks import problems
from load_weights import load_tokenizer
from test_compare import stop_at, table

SEED = 1234
SHORT = ["--gen-length", "64", "--strategies"]


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def asked(tmp_path) -> Path:
    drawn = islice(problems(SEED, "two-step", held_out=True), 5)
    return write(tmp_path / "in.jsonl", [{"question": p.prompt, "answer": p.answer} for p in drawn])


def run(capsys, *arguments) -> tuple[str, str, int]:
    """stdout, stderr without progress, exit code."""
    code = 0
    try:
        bench.main(["compare", *map(str, arguments)])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return out, re.sub("[^\n]*\r", "", err), code


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def alike(path: Path) -> set[str]:
    """The lines without their times."""
    return {json.dumps(line | {"seconds": 0}, sort_keys=True) for line in read(path)}


# --- what is right


@pytest.mark.parametrize("task", ["two-step", "sort", "total"])
def test_the_last_number_is_right_where_the_steps_are(capsys, tmp_path, task):
    """Would catch an answer that is cut, another number than the last, and problems of another order: who has every step right, as the
    strict check of the tasks asks, has the last number right. And the same decodes: forwards and rows are equal."""
    line = ["--strategies", "llada:steps=16,streaming", "--limit", "12", "--gen-length", "128", "--seed", SEED, "--json"]
    drawn = islice(problems(SEED, task, held_out=True), 12)
    file = write(tmp_path / "in.jsonl", [{"question": p.prompt, "answer": p.answer} for p in drawn])
    strict, loose = (json.loads(run(capsys, *line, *where)[0])["figures"]["all"] for where in (["--task", task], ["--data", file]))
    for label in strict:
        assert loose[label]["accuracy"] >= strict[label]["accuracy"]
        assert [loose[label][name] for name in ("forwards", "rows", "problems")] == [
            strict[label][name] for name in ("forwards", "rows", "problems")
        ]
    assert loose["streaming"]["accuracy"] > 0.6


@pytest.mark.parametrize(
    "text, number",
    [
        ("6 * 2 = 12. The answer is 12.", "12"),
        ("It costs $1,234.50 in all.", "1234.50"),
        ("#### -7", "-7"),
        ("20-3", "3"),
        ("(5)-3", "3"),
        ("so -$5", "-5"),
        ("1, 2, 3...", "3"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number(text, number):
    """Would catch a sign that subtracts, a full stop that belongs to the sentence, and a match that is not the last."""
    assert found(re.compile(NUMBER), text) == number


def test_patterns_say_what_is_right(capsys, tmp_path):
    """Would catch a group that is ignored, a first match that counts, and a share without a match that is not shown."""
    assert found(re.compile(r"#### (-?[0-9.,]+)|\[(.*?)\]"), "#### 1,000. or [x] and [two]") == "two"
    lines = [{"id": "a", "q": "What is 25 + 17?", "a": "easy #### 42"}, {"id": "b", "q": "What is 2 + 3?", "a": "#### 1,000"}]
    file = write(tmp_path / "in.jsonl", lines)
    line = ["--data", file, "--question", "q", "--answer", "a", "--gold", "#### (.*)", *SHORT, "streaming", "--out", tmp_path / "out.jsonl"]
    out, _, _ = run(capsys, *line, "--extract", r"(\d)\d\b|= (\d)\.")
    assert [(r["gold"], r["extracted"], r["right"]) for r in read(tmp_path / "out.jsonl")] == [("42", "4", False), ("1000", "5", False)]
    (tmp_path / "out.jsonl").unlink()
    out, _, _ = run(capsys, *line, "--extract", r"\b\d\d\b")
    assert [(r["extracted"], r["right"]) for r in read(tmp_path / "out.jsonl")] == [("42", True), (None, False)]
    rows = table(out)
    assert rows["strategy"][-1] == "no match" and rows["streaming"][-1] == "50.0%" and rows["streaming"][0] == "50.0%"


CHECK = """
def sums(line, text):
    return text.startswith(line["begins"])

def silent(line, text):
    pass

def fails(line, text):
    return 1 / 0

def one(text):
    return True
"""


def test_a_function_of_ones_own_says_what_is_right(capsys, tmp_path):
    """Would catch a function that does not get the whole line, a file without answers that is refused, and a forgotten `return` that
    counts as wrong."""
    (tmp_path / "c.py").write_text(CHECK)
    file = write(tmp_path / "in.jsonl", [{"question": "What is 25 + 17?", "begins": "25"}, {"question": "What is 2 + 3?", "begins": "25"}])
    line = ["--data", file, *SHORT, "streaming", "--check"]
    out, _, code = run(capsys, *line, f"{tmp_path}/c.py:sums")
    assert code == 0 and table(out)["streaming"][0] == "50.0%" and "no match" not in out
    out, err, code = run(capsys, *line, f"{tmp_path}/c.py:silent")
    assert code == 2 and "what --check gives back is None, expected True or False" in err
    with pytest.raises(SystemExit) as exit:
        bench.main(list(map(str, ["compare", *line, f"{tmp_path}/c.py:fails"])))
    assert "c.py" in exit.value.code and exit.value.code.endswith("division by zero")  # the traceback begins in the file


# --- what is asked


def source(file: Path, **given) -> Data:
    names = ("task", "question", "answer", "gold", "extract", "check", "few_shot", "turns", "until", "limit")
    return Data(Namespace(**dict.fromkeys(names) | {"data": str(file)} | given))


def test_shots_go_before_the_question(tmp_path):
    """Would catch shots in another order, an answer that the assistant does not give, and a template around raw text."""
    shots = write(tmp_path / "shots.jsonl", [{"question": "a?", "answer": "A"}, {"question": "b?", "answer": 7}])
    file, tokenizer = write(tmp_path / "in.jsonl", [{"question": "c?", "answer": "3"}]), load_tokenizer(TINY)
    own = {turns: source(file, few_shot=str(shots), turns=turns).own[0] for turns in data.WAYS}
    text = "a?\nA\n\nb?\n7\n\nc?"
    said = [("user", "a?"), ("assistant", "A"), ("user", "b?"), ("assistant", "7"), ("user", "c?")]
    assert own["one"].prompt == [{"role": "user", "content": text}]
    assert [(turn["role"], turn["content"]) for turn in own["many"].prompt] == said
    assert own["raw"].text(tokenizer) == text
    assert own["one"].text(tokenizer) == tokenizer.render(own["one"].prompt, True) != own["many"].text(tokenizer)
    assert source(file).own[0].prompt == [{"role": "user", "content": "c?"}]


def test_raw_is_what_the_program_gets_as_raw(capsys, tmp_path):
    """Would catch a begin-of-text or a template that --turns raw adds."""
    file, out = write(tmp_path / "in.jsonl", [{"question": "25 + 17 =", "answer": "42"}]), tmp_path / "out.jsonl"
    assert run(capsys, "--data", file, "--turns", "raw", *SHORT, "streaming", "--out", out)[2] == 0
    from lab import command_line

    command_line.main(["--prompt", "25 + 17 =", "--raw", "--strategy", "streaming", "--gen-length", "64", "--eos", "stop"])
    assert read(out)[0]["prompt"] == "25 + 17 =" and capsys.readouterr().out.rstrip("\n") == read(out)[0]["text"]


def test_an_answer_ends_at_the_first_of_some_texts(capsys, asked):
    """Would catch a cut at the last one, or at one of them alone; what is cut off is not judged."""
    out = asked.with_name("out.jsonl")
    run(capsys, "--data", asked, *SHORT, "streaming", "--until", "The", "--until", ".", "--out", out)
    whole = asked.with_name("whole.jsonl")
    run(capsys, "--data", asked, *SHORT, "streaming", "--out", whole)
    for cut, line in zip(read(out), read(whole)):
        assert cut["text"] == line["text"].split(".")[0] and cut["tokens"] == line["tokens"] and cut["extracted"] == cut["text"].split()[-1]


# --- the file of runs


def test_a_line_says_all_that_happened(capsys, asked, tmp_path):
    """Would catch a file from which a table cannot be made again, and settings that are only those given."""
    (tmp_path / "r.py").write_text("def rule(tau=0.9):\n    return lambda scores, candidates, window: scores.confidence > tau\n")
    out, own = tmp_path / "out.jsonl", f"{tmp_path}/r.py:rule:tau=0.5"
    text, _, _ = run(capsys, "--data", asked, *SHORT, f"fast-dllm,{own}", "--out", out, "--batch-size", "2", "--json")
    lines, found = read(out), json.loads(text)["figures"]["all"]
    assert len(lines) == 10 and {line["contender"] for line in lines} == set(found) == {"fast-dllm", own}
    for label, f in found.items():
        mine = [line for line in lines if line["contender"] == label]
        assert sum(line["right"] for line in mine) == f["right"] and sum(line["forwards"] for line in mine) / 5 == f["forwards"]
        assert sum(line["rows"] for line in mine) / 5 == pytest.approx(f["rows"])
        assert sum(line["tokens"] for line in mine) / sum(line["seconds"] for line in mine) == pytest.approx(f["tokens_per_second"])
    line = next(line for line in lines if line["contender"] == own)
    assert line["settings"]["tau"] == 0.5 and line["settings"]["cache"] == "prefix" and line["settings"]["gen_length"] == 64
    assert line["settings"]["eos"] == "stop" and len(line["rule_hash"]) == 64 and line["model"] == "embedded" and line["id"] == 1
    assert line["prompt"].startswith("<|startoftext|>") and "user" in line["prompt"] and line["text"].endswith(f"{line['extracted']}.")


STRATEGIES = "llada:steps=8,fast-dllm:cache=dual,streaming"


@pytest.mark.parametrize("size", [1, 2])
def test_a_stopped_comparison_goes_on_where_it_was(capsys, asked, size):
    """Would catch a problem decoded twice, a torn line that is kept, and a batch of which a part is left that is decoded as another one:
    the lines of a run that was cut anywhere are those of an unbroken one, but for their times."""
    out, whole = asked.with_name("out.jsonl"), asked.with_name("whole.jsonl")
    line = ["--data", asked, *SHORT, STRATEGIES, "--batch-size", size, "--out"]
    table_of = lambda text: {name: row[:4] for name, row in table(text).items()}
    unbroken = table_of(run(capsys, *line, whole)[0])
    data = whole.read_bytes()
    for cut in (0, 7, len(data) // 3, len(data) // 2, len(data) - 3, len(data)):
        out.write_bytes(data[:cut])
        assert table_of(run(capsys, *line, out)[0]) == unbroken
        assert (
            alike(out) == alike(whole)
            and len(read(out)) == 15
            and out.read_bytes()[: data.rfind(b"\n", 0, cut) + 1] == data[: data.rfind(b"\n", 0, cut) + 1]
        )


def test_a_killed_comparison_loses_nothing_that_was_done(capsys, asked):
    """Would catch runs that wait in a buffer."""
    out, whole = asked.with_name("out.jsonl"), asked.with_name("whole.jsonl")
    line = ["compare", "--data", str(asked), *SHORT, STRATEGIES, "--out"]
    code = f"""if True:
        import os, signal
        from lab import bench, compare

        def answer(*arguments, **settings):
            if calls.append(1) or len(calls) == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **settings)

        calls, real, compare.answer = [], compare.answer, lambda *a, **k: answer(*a, **k)
        bench.main({[*line, str(out)]!r})"""
    assert program.run([], code) == -signal.SIGKILL and len(read(out)) == 7
    bench.main([*line, str(out)])
    bench.main([*line, str(whole)])
    assert alike(out) == alike(whole) and len(read(out)) == 15


def test_more_contenders_and_problems_join_a_file(capsys, asked, monkeypatch):
    """Would catch a file that belongs to one command only, and runs that are made again."""
    out = asked.with_name("out.jsonl")
    run(capsys, "--data", asked, "--limit", "3", *SHORT, "streaming", "--out", out)
    before, calls, real = out.read_bytes(), [], compare.answer
    monkeypatch.setattr(compare, "answer", lambda *arguments, **own: calls.append(arguments[3]) or real(*arguments, **own))
    text, _, code = run(capsys, "--data", asked, *SHORT, "llada:steps=8,streaming", "--out", out)
    assert code == 0 and out.read_bytes().startswith(before) and calls.count("streaming") == 2 and calls.count("llada") == 5
    assert len(read(out)) == 10 and set(table(text)) == {"strategy", "llada:steps=8", "streaming"}


def test_runs_of_something_else_are_left_as_they_are(capsys, asked, tmp_path):
    """Would catch runs of two settings, two patterns, two versions of a rule or two problems under one name in a file."""
    out, rule = tmp_path / "out.jsonl", tmp_path / "r.py"
    rule.write_text("def rule(scores, candidates, window):\n    return scores.confidence > 0.9\n")
    line = ["--data", asked, "--out", out, *SHORT, f"streaming,{rule}:rule"]
    assert run(capsys, *line)[2] == 0
    before, lines = out.read_bytes(), read(asked)
    for arguments, message in (
        (["--gen-length", "32"], "begun with gen_length 64, this is 32"),
        (["--eos", "fill"], "begun with eos 'stop', this is 'fill'"),
        (["--extract", r"\d+"], "begun with extract "),
        (["--until", "x"], "begun with until [], this is ['x']"),
        (["--dtype", "bfloat16"], "begun with dtype None, this is 'bfloat16'"),
        (["--model", str(TINY)], "begun with model 'embedded', this is"),
        (["--turns", "raw"], "has another prompt of the id 1: give another file"),
    ):
        text, err, code = run(capsys, *line, *arguments)
        assert (code, text) == (2, "") and err.count("\n") == 1 and message in err and out.read_bytes() == before
    write(asked, [lines[0] | {"answer": "99"}])
    assert "has another answer of the id 1" in run(capsys, *line)[1]
    write(asked, lines)
    rule.write_text(rule.read_text().replace("0.9", "0.8"))
    assert "begun with rule_hash" in run(capsys, *line)[1] and out.read_bytes() == before
    for text in (
        b"my notes\n",
        b'{"id": 1, "contender": []}\n',
        before.replace(b'"rows": ', b'"rows": "x", "r": ', 1),
        before.replace(b'"id": 1', b'"id": []', 1),
    ):
        out.write_bytes(text)
        _, err, code = run(capsys, *line)
        assert code == 2 and "line 1 is no run of this program" in err and err.count("\n") == 1 and out.read_bytes() == text


def test_ctrl_c_shows_the_table_so_far_and_keeps_the_runs(capsys, asked, monkeypatch):
    """Would catch hours that are lost, and a contender with one problem more than the others."""
    out = asked.with_name("out.jsonl")
    stop_at(monkeypatch, compare, "answer", 6)
    text, err, code = run(capsys, "--data", asked, *SHORT, "streaming,llada:steps=8", "--out", out)
    assert code == 130 and "Stopped: of each the same" in text and len(read(out)) == 5 and err.endswith("done till then\n")
    assert table(text)["streaming"][1] == table(text)["llada:steps=8"][1] or table(text)["streaming"][0] != table(text)["llada:steps=8"][0]


def test_a_full_disk_is_one_line_and_leaves_whole_runs(capsys, asked):
    """Would catch a contender that is left out because the disk is full, and half a line."""
    out = asked.with_name("out.jsonl")
    line = ["--data", asked, *SHORT, "streaming", "--out", out]
    run(capsys, *line)
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"")
    with full_disk(len(whole[0] + whole[1]) + 40):
        text, err, code = run(capsys, *line)
    assert code == 2 and text == "" and err.rstrip().endswith(f"--out {out} cannot be written: File too large")
    assert len(read(out)) == 2


# --- how sure figures are


def test_mcnemar_is_exact():
    """Would catch a test of one side, a chi-squared, and a power of two that is one too large."""
    assert figures.mcnemar(9, 1) == pytest.approx(0.02148, abs=5e-6) == figures.mcnemar(1, 9)
    assert figures.mcnemar(0, 0) == figures.mcnemar(1, 0) == figures.mcnemar(5, 5) == 1.0 and figures.mcnemar(0, 6) == 2 / 64


def test_problems_are_paired_one_by_one():
    """Would catch a difference of sums, an interval of unpaired shares, and one of the wrong contender."""
    run = lambda right, forwards: {"right": right, "forwards": forwards}
    first = [run(i < 50, 10) for i in range(100)]
    this = [run(i < 49 or 50 <= i < 59, 4 + i % 3) for i in range(100)]
    f = figures.paired(this, first)
    assert (f["gained"], f["lost"], f["mcnemar"]) == (9, 1, figures.mcnemar(9, 1))
    assert 0.01 <= f["difference_low"] <= 0.03 and 0.13 <= f["difference_high"] <= 0.15  # 0.08 and 1.96 times sqrt((10 - 0.64) / 100) / 10
    assert 4.8 < f["forwards_low"] < 4.99 < f["forwards_high"] < 5.2
    assert figures.paired(first, first)["forwards_low"] == 10 == figures.paired(first, first)["forwards_high"]


def test_an_interval_holds_what_it_should_most_of_the_time():
    """Would catch quantiles of the values instead of the mean's, and intervals of half the width: of 100 drawn means 95 lie inside."""
    import random

    draw, inside = random.Random(0), 0
    for _ in range(100):
        low, high = figures.bootstrap([draw.gauss(3, 2) for _ in range(60)])
        inside += low < 3 < high
    assert 88 <= inside <= 99


# --- forms


def test_the_forms_say_the_same(capsys, asked):
    """Would catch CSV beside words, a LaTeX table with a bare % that hides the rest of its line, and columns that shift."""
    line = ["--data", asked, *SHORT, "llada:steps=8,docs/my_rule.py:rule", "--eos", "fill"]
    plain = table(run(capsys, *line)[0])
    text, err, _ = run(capsys, *line, "--csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["strategy"] for row in rows] == ["llada:steps=8", "docs/my_rule.py:rule"] and "5 problems of" in err
    assert [f"{float(row['accuracy']):.1%}" for row in rows] == [plain[row["strategy"]][0] for row in rows]
    assert [f"{float(row['forwards_low']):.1f} - {float(row['forwards_high']):.1f}" for row in rows] == [
        plain[r["strategy"]][8] for r in rows
    ]
    text, _, _ = run(capsys, *line, "--latex")
    lines = text[text.index(r"\begin{tabular}") :].splitlines()
    assert lines[0] == rf"\begin{{tabular}}{{l{'r' * (len(plain['strategy']))}}}" and lines[-1] == r"\end{tabular}"
    cells = {cells[0]: cells[1:] for cells in (line.removesuffix(r" \\").split(" & ") for line in lines if "&" in line)}
    assert r"docs/my\_rule.py:rule" in cells and all(len(row) == len(plain["strategy"]) for row in cells.values())
    assert cells["llada:steps=8"][0] == plain["llada:steps=8"][0].replace("%", r"\%") and not re.search(r"(?<!\\)%", "\n".join(lines))


def test_own_views_and_builders_take_part(capsys, asked, tmp_path):
    """Would catch a strategy of one's own whose view or schedule another takes the place of."""
    (tmp_path / "own.py").write_text(
        "from model import Pass\nfrom strategies import Strategy\nfrom strategies.llada import serial\n\n"
        "def whole(tau=0.9):\n    rule = lambda scores, candidates, window: scores.confidence >= tau\n"
        "    return Strategy(rule, lambda s, window: Pass(slice(0, s.x.shape[1])), serial)\n"
    )
    own = [f"{tmp_path}/own.py:whole:tau={tau}" for tau in (0.5, 2.0)]
    named = [f"fast-dllm:cache=none:threshold={tau}" for tau in (0.5, 2.0)]
    rows = table(run(capsys, "--data", asked, *SHORT, ",".join([*own, *named]))[0])
    assert [rows[label][:4] for label in own] == [rows[label][:4] for label in named] and rows[own[0]][2] != rows[own[1]][2]


GOOD = '{"question": "What is 2 + 3?", "answer": "5"}\n'


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--data", "empty.jsonl"], "empty.jsonl holds no line"),
        (["--data", "bytes.jsonl"], "bytes.jsonl, line 1: the line is "),
        (
            ["--data", "in.jsonl", "--question", "prompt"],
            "in.jsonl, line 1: prompt is None, expected a text: the line has 'question', 'answer'",
        ),
        (["--data", "in.jsonl", "--answer", "gold"], "in.jsonl, line 1: gold is None"),
        (["--data", "null.jsonl"], "null.jsonl, line 2: answer is None"),
        (["--data", "blank.jsonl"], "blank.jsonl, line 1: the question is empty"),
        (["--data", "twice.jsonl"], "twice.jsonl, line 2: id is 1, expected another"),
        (["--data", "words.jsonl"], "the answer of 1 has no match of"),
        (["--data", "in.jsonl", "--gold", "("], "--gold '(' is no pattern"),
        (["--data", "in.jsonl", "--extract", "[" * 99], "--extract '[["),
        (["--data", "in.jsonl", "--gold", "#### (.*)"], "the answer of 1 has no match of '#### (.*)'"),
        (["--data", "in.jsonl", "--check", "c.py:sums", "--gold", "x"], "--gold has no meaning with --check"),
        (["--data", "in.jsonl", "--check", "c.py"], "expected FILE.py:FUNCTION"),
        (["--data", "in.jsonl", "--check", "nowhere.py:f"], "there is no file nowhere.py"),
        (["--data", "in.jsonl", "--check", "c.py:nothing"], "c.py defines no function 'nothing'"),
        (["--data", "in.jsonl", "--check", "c.py:one"], "a check takes (line, text)"),
        (["--data", "in.jsonl", "--few-shot", "empty.jsonl"], "empty.jsonl holds no line"),
        (["--data", "in.jsonl", "--few-shot", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--data", "in.jsonl", "--turns", "two"], "argument --turns: invalid choice: 'two'"),
        (["--data", "in.jsonl", "--until", ""], "--until is empty"),
        (["--data", "in.jsonl", "--task", "add"], "--task has no meaning with --data"),
        (["--data", "in.jsonl", "--out", "in.jsonl"], "--out in.jsonl is the file of --data"),
        (["--data", "in.jsonl", "--few-shot", "shots.jsonl", "--out", "shots.jsonl"], "--out shots.jsonl is the file of --few-shot"),
        (["--data", "in.jsonl", "--out", "no/such/out.jsonl"], "there is no folder"),
        (["--data", "in.jsonl", "--out", "."], "that is a folder"),
        (["--data", "in.jsonl", "--csv", "--latex"], "--latex has no meaning with --csv"),
        (["--data", "in.jsonl", "--json", "--csv"], "--csv has no meaning with --json"),
        (["--data", "long.jsonl"], "streaming, problem 2: the prompt has"),
        (["--gold", "x"], "--gold needs --data"),
        (["--few-shot", "shots.jsonl"], "--few-shot needs --data"),
        (["--until", "x"], "--until needs --data"),
        (["--turns", "raw"], "--turns needs --data"),
        (["--data", ""], " cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, message):
    """Would catch a traceback after an hour, and a file that is made for nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "answer", lambda *_, **own: pytest.fail("decoded"))
    files = {
        "in.jsonl": GOOD, "shots.jsonl": GOOD, "empty.jsonl": "\n", "c.py": CHECK, "null.jsonl": GOOD + '{"question": "a", "answer": null}\n',
        "blank.jsonl": GOOD.replace("What is 2 + 3?", " "), "twice.jsonl": '{"id": 1, "question": "a", "answer": "1"}\n' * 2,
        "words.jsonl": GOOD.replace("5", "five"), "long.jsonl": GOOD + GOOD.replace("What", "What " * 9999),
    }  # fmt: skip
    for name, text in files.items():
        Path(name).write_text(text)
    Path("bytes.jsonl").write_bytes(b"\xff\x1b[31m\n")
    out, err, code = run(capsys, "--strategies", "streaming", *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err and "\x1b" not in err
    assert {path.name for path in tmp_path.iterdir()} == {*files, "bytes.jsonl"} and Path("in.jsonl").read_text() == GOOD
