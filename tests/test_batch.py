"""`--prompts in.jsonl --out out.jsonl`: every good line is answered once, as it would be alone, through kills, bad lines and other settings."""

import json
import signal
from pathlib import Path

import pytest

import program
from conftest import full_disk
from lab import batch
from lab.files import locked
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
        '{"id": 1, "prompt": null}': "prompt is None",
        '{"id": 2, "question": "a", "\\u001b[2J": 1}': "expected a 'prompt', found 'id', 'question', '\\x1b[2J'",
        "{}": "expected a 'prompt', found nothing",
        '{"prompt": " "}': "the prompt is empty",
        '{"id": 1.5, "prompt": "a"}': "id is 1.5",
        '{"id": "q0", "prompt": "b"}': "has come before",
        json.dumps({"prompt": "a" * 600}): "more than the model's 512",
        '{"prompt": "\\ud800"}': "not valid UTF-8",
    }
    asked.write_text("\n".join([*good, "", *bad]) + "\n")
    _, err, code = ask(capsys, saved, asked)
    assert code == 1 and len(answered(asked.with_name("out.jsonl"))) == 6 and "bad_lines 10" in err
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
        (["--strategy", "llada"], "begun with strategy 'fast-dllm', this is 'llada'"),
        (["--threshold", "0.5"], "begun with threshold 0.9, this is 0.5"),
        (["--seed", "3"], "begun with seed 0, this is 3"),
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


def test_a_file_of_other_keys_is_refused_before_a_model_is_loaded(saved, asked, capsys, monkeypatch):
    """Would catch {"question": ...} lines that cost the loading of a model, and a message that does not say which key is meant."""
    monkeypatch.setattr("lab.batch.open_model", lambda *_: pytest.fail("loaded a model"))
    asked.write_text('{"question": "a"}\n{"question": "b"}\n')
    _, err, code = ask(capsys, saved, asked)
    assert code == 2 and err.count("\n") == 1 and "in.jsonl, line 1: expected a 'prompt', found 'question'; no line holds" in err
    assert not asked.with_name("out.jsonl").exists()


def test_a_batch_that_hits_the_cap_costs_only_itself(saved, asked, capsys):
    """Would catch one hard prompt that ends a night's work, an answer with masks, and prompts that are not asked again."""
    arguments = ["--threshold", "1", "--steps"]
    code = [ask(capsys, saved, asked, "--batch-size", "1", *arguments, steps, out=f"{steps}.jsonl")[1:] for steps in ("8", "24")]
    (err, status), (_, fine) = code
    whole = answered(asked.with_name("24.jsonl"))
    easy = {name for name, record in whole.items() if record["forwards"] <= 8}
    assert fine == 0 and status == 1 and f"unanswered {6 - len(easy)}" in err
    lines = [line for line in err.splitlines() if line.startswith("no answer to 'q")]
    assert len(lines) == 6 - len(easy) > 0 and all("steps=8 forwards are spent" in line for line in lines)
    assert answered(asked.with_name("8.jsonl")).keys() == easy


RULE = "def rule(scores, candidates, window):\n    return candidates & (scores.confidence > {})\n"


def test_an_edited_rule_does_not_go_on(saved, asked, capsys):
    """Would catch one file with answers of two rules, and a default that has changed since; what is answered already is counted."""
    file, out = asked.with_name("rule.py"), asked.with_name("out.jsonl")
    file.write_text(RULE.format(0.5))
    _, err, code = ask(capsys, saved, asked, "--strategy", f"{file}:rule")
    assert code == 0 and "answered_before 0" in err
    _, err, code = ask(capsys, saved, asked, "--strategy", f"{file}:rule")
    assert code == 0 and "questions 0" in err and "answered_before 6" in err
    before = out.read_bytes()
    file.write_text(RULE.format(0.6))
    _, err, code = ask(capsys, saved, asked, "--strategy", f"{file}:rule")
    assert code == 2 and "was begun with rule_hash" in err and out.read_bytes() == before
    out.unlink()
    ask(capsys, saved, asked)
    out.write_text(out.read_text().replace('"threshold": 0.9', '"threshold": 0.8'))
    _, err, code = ask(capsys, saved, asked)
    assert code == 2 and "was begun with threshold 0.8, this is 0.9" in err
    for text in (
        b'{"id": 1, "prompt": "a", "settings": 5}\n',
        out.read_bytes().replace(b'"settings": {', b'"settings": {"\\u001b": 1}, "x": {'),
    ):
        out.write_bytes(text)
        _, err, code = ask(capsys, saved, asked)
        assert code == 2 and err.count("\n") == 1 and "\x1b" not in err and out.read_bytes() == text


def test_a_second_run_of_one_file_is_refused(saved, asked, capsys, monkeypatch):
    """Would catch two runs that both answer what is left: every answer twice. Also where the file appears while a model is loaded."""
    out = asked.with_name("out.jsonl")
    out.touch()
    with locked(out):
        _, err, code = ask(capsys, saved, asked)
        assert code == 2 and err.count("\n") == 1 and f"{out} is in use" in err and out.read_bytes() == b""
    load = batch.open_model

    def slowly(*arguments):
        monkeypatch.setattr(batch, "open_model", load)
        assert ask(capsys, saved, asked)[2] == 0
        return load(*arguments)

    out.unlink()
    monkeypatch.setattr(batch, "open_model", slowly)
    _, err, code = ask(capsys, saved, asked)
    assert code == 2 and "another run has begun it just now" in err and len(answered(out)) == 6


def test_a_full_disk_is_one_line_and_leaves_whole_answers(saved, asked, capsys):
    """Would catch half an answer before those of a later batch, which no run would read again."""
    out = asked.with_name("out.jsonl")
    ask(capsys, saved, asked, "--batch-size", "2")
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"")
    with full_disk(len(lines[0] + lines[1]) + 40):
        _, err, code = ask(capsys, saved, asked, "--batch-size", "2")
    line = err.splitlines()[-1]
    assert code == 2 and "Traceback" not in err and line.endswith(f"--out {out} cannot be written: File too large")
    assert out.read_bytes() == lines[0] + lines[1]
    ask(capsys, saved, asked, "--batch-size", "2")
    assert out.read_bytes() == whole
