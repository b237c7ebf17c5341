"""`--prompts in.jsonl --out out.jsonl`: every good line is answered once, as it would be alone, through kills, bad lines and other settings."""

import json
import signal
from pathlib import Path

import pytest

import program
from test_command_line import SHORT, run

PROMPTS = ["hello", "a much longer story than the others", "what is 2", "a", "a b c d e", "why not"]


@pytest.fixture
def asked(tmp_path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": f"q{i}", "prompt": prompt}) + "\n" for i, prompt in enumerate(PROMPTS)))
    return path


def answered(path: Path) -> dict:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["id"] for record in records}) == len(records)  # nothing twice
    return {record["id"]: record for record in records}


def ask(capsys, saved, asked, *arguments, out="out.jsonl"):
    return run(capsys, "--model", saved, "--prompts", asked, "--out", asked.with_name(out), *SHORT, *arguments)


@pytest.mark.parametrize("size", [1, 4])
def test_each_prompt_is_answered_as_it_would_be_alone(saved, asked, capsys, size):
    """Would catch an answer under another's id, padding that is seen, and a batch that is never written."""
    out, err, code = ask(capsys, saved, asked, "--batch-size", size)
    assert code == 0 and out == "" and "questions 6" in err and "bad_lines 0" in err
    records = answered(asked.with_name("out.jsonl"))
    for number, prompt in enumerate(PROMPTS):
        alone, err, _ = run(capsys, "--model", saved, "--prompt", prompt, "--json", *SHORT)
        record = records[f"q{number}"]
        assert record["prompt"] == prompt and record["answer"] + "\n" == alone
        assert {name: json.loads(err)[name] for name in ("tokens", "forwards")} == {name: record[name] for name in ("tokens", "forwards")}


def test_a_stopped_run_goes_on_where_it_was(saved, asked, capsys):
    """Would catch an answer decoded twice, a torn line that is kept or that swallows the next, and a file that is begun anew."""
    ask(capsys, saved, asked)
    path = asked.with_name("out.jsonl")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    marked = [line.replace(b'"answer": "', b'"answer": "kept ') for line in lines[:2]]
    path.write_bytes(b"".join(marked) + lines[2][:-20])
    _, err, code = ask(capsys, saved, asked)
    assert code == 0 and "questions 4" in err
    assert path.read_bytes() == b"".join(marked) + b"".join(lines[2:])
    _, err, code = ask(capsys, saved, asked)
    assert code == 0 and "questions 0" in err and path.read_bytes() == b"".join(marked) + b"".join(lines[2:])


def test_a_killed_run_loses_nothing_that_was_done(saved, asked):
    """Would catch answers that wait in a buffer."""
    path = asked.with_name("out.jsonl")
    code = """if True:
        import os, signal
        import dllm
        from lab import batch

        def generate(*arguments, **settings):
            if calls.append(1) or len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return dllm.generate(*arguments, **settings)

        calls, batch.generate = [], generate"""
    killed = program.run(["--model", saved, "--prompts", asked, "--out", path, "--batch-size", 2, *SHORT], code)
    assert killed == -signal.SIGKILL and len(answered(path)) == 4


def test_a_bad_line_is_named_and_the_rest_goes_on(saved, asked, capsys):
    """Would catch one bad line that costs a night's work, and one that nobody hears of."""
    good = asked.read_text().splitlines()
    bad = {
        "{": "expected an object",
        "[1]": "expected an object",
        '{"id": 1}': "prompt is None",
        '{"prompt": " "}': "the prompt is empty",
        '{"id": 1.5, "prompt": "a"}': "id is 1.5",
        '{"id": "q0", "prompt": "b"}': "has come before",
        json.dumps({"prompt": "a" * 600}): "more than the model's 512",
        '{"prompt": "\\ud800"}': "not valid UTF-8",
    }
    asked.write_text("\n".join([*good, "", *bad]) + "\n")
    _, err, code = ask(capsys, saved, asked)
    assert code == 1 and len(answered(asked.with_name("out.jsonl"))) == 6 and "bad_lines 8" in err
    for number, message in enumerate(bad.values(), start=8):
        assert any(f"in.jsonl, line {number}: " in line and message in line for line in err.splitlines()), (number, message)


def test_the_number_of_its_line_is_the_id_of_a_prompt_without_one(saved, asked, capsys):
    """Would catch prompts that answer each other's names."""
    asked.write_text('\n{"prompt": "a"}\n{"prompt": "b"}\n')
    ask(capsys, saved, asked)
    assert {name: record["prompt"] for name, record in answered(asked.with_name("out.jsonl")).items()} == {2: "a", 3: "b"}


def test_an_output_of_something_else_is_left_as_it_is(saved, asked, capsys):
    """Would catch answers of two settings in one file, and a file of somebody else's that is written to."""
    ask(capsys, saved, asked)
    path = asked.with_name("out.jsonl")
    before = path.read_bytes()
    for arguments, message in (
        (["--strategy", "llada"], "begun with strategy fast-dllm"),
        (["--threshold", "0.5"], "begun with settings"),
        (["--seed", "3"], "begun with settings"),
        (["--raw"], "begun with raw False, this is True"),
        (["--int8"], "begun with int8 False, this is True"),
    ):
        _, err, code = ask(capsys, saved, asked, *arguments)
        assert code == 2 and message in err and err.count("\n") == 1 and path.read_bytes() == before
    asked.write_text('{"id": "q0", "prompt": "another"}\n')
    _, err, code = ask(capsys, saved, asked)
    assert code == 2 and "another prompt of the id 'q0'" in err and path.read_bytes() == before
    path.write_text("my notes\n")
    _, err, code = ask(capsys, saved, asked)
    assert code == 2 and "line 1 is no answer of this program" in err and path.read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "nowhere.jsonl", "--out", "out.jsonl"], "nowhere.jsonl cannot be read"),
        (["--prompts", "{in}"], "--prompts needs --out"),
        (["--prompt", "a", "--out", "out.jsonl"], "--out needs --prompts"),
        (["--prompt", "a", "--batch-size", "0"], "--batch-size needs --prompts"),
        (["--prompts", "{in}", "--out", "nowhere/out.jsonl"], "there is no folder nowhere"),
        (["--prompts", "{in}", "--out", "{in}"], "is the file of the prompts"),
        (["--prompts", "{in}", "--out", "."], "that is a folder"),
        (["--prompts", "{in}", "--out", "out.jsonl", "--batch-size", "0"], "batch_size is 0"),
        (["--prompts", "{in}", "--out", "out.jsonl", "--watch", "0"], "--watch has no meaning with --prompts"),
        (["--prompts", "{in}", "--out", "out.jsonl", "--prompt", "a"], "--prompt has no meaning with --prompts"),
        (["--prompts", "{in}", "--out", "out.jsonl", "--infill", "___"], "--infill has no meaning with --prompts"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(saved, asked, capsys, monkeypatch, arguments, message):
    """Would catch a run of hours whose answers cannot be written."""
    monkeypatch.chdir(asked.parent)
    _, err, code = run(capsys, "--model", saved, *[a.replace("{in}", "in.jsonl") for a in arguments], *SHORT)
    assert code == 2 and message in err and err.count("\n") == 1
    assert sorted(path.name for path in asked.parent.iterdir()) == ["in.jsonl"]
