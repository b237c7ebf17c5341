"""A short run of every kind of fuzz.py, always the same; by hand it goes on for thousands."""

import os
import sys
import time

import pytest

import fuzz
import kills

COUNTS = {"checkpoints": 200, "calls": 60, "kills": 3}  # of the others 30


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_nothing_ends_but_in_an_answer_or_in_one_line(kind):
    """Would catch a traceback, a hang, a mask in an answer, and a message that is no single line, each with the command to see it again."""
    faults: list[str] = []
    ends = fuzz.run(kind, COUNTS.get(kind, 30), seed=1, seconds=120, report=faults.append)
    assert not faults, "\n".join(faults)
    assert (ends[fuzz.REFUSED] or kind == "kills") and (ends[fuzz.ANSWERED] or kind not in COUNTS)


class Panic(BaseException):
    """As Rust's in Python."""


def bad(error):
    raise error


@pytest.mark.parametrize(
    "work, words",
    [
        (lambda: bad(TypeError("a")), "TypeError in test_fuzz.py"),
        (lambda: bad(Panic("a")), "Panic in test_fuzz.py"),
        (lambda: bad(ValueError("two\nlines")), "a message with control characters or several lines"),
        (lambda: bad(ValueError("\x1b[31m")), "a message with control characters"),
        (lambda: bad(ValueError()), "an empty message"),
        (lambda: bad(ValueError("a" * 5000)), "a message of 5000 characters"),
        (lambda: os.write(2, b"panicked") and None, "printed 'panicked'"),
        (lambda: print("warning", file=sys.__stderr__, flush=True), "printed 'warning"),
        (lambda: "an answer with a mask", "an answer with a mask"),
        (lambda: None, "answered"),
        (lambda: bad(ValueError("one line")), "refused"),
    ],
)
def test_faults_are_seen(work, words):
    """Negative control: what counts as a fault does count."""
    end = fuzz.outcome(work)
    assert end.startswith(words) and (end in (fuzz.ANSWERED, fuzz.REFUSED)) == (words in (fuzz.ANSWERED, fuzz.REFUSED))


@pytest.mark.parametrize(
    "look, name, content",
    [
        (kills.answers, "out.jsonl", '{"id": 1}\n{"id": 1}\n'),
        (kills.answers, "out.jsonl", '{"id": 1}\n{"id": {"id": 2}\n'),
        (kills.weights, "run/checkpoint.safetensors", "half"),
        (kills.weights, "out/config.json", '{"half": '),
        (kills.sound_trace, "run.jsonl", '{"half": {}}\n'),
        (kills.jobs("")["page"].sound, "page.html", "<html>"),
        (lambda folder: bad(ValueError(wrong)) if (wrong := kills.ended(Ended(1), folder, (0,))) else None, "stderr", ""),
        (lambda folder: bad(ValueError(wrong)) if (wrong := kills.ended(Ended(0), folder, (0,))) else None, "stderr", "Traceback"),
    ],
)
def test_what_a_kill_must_not_leave_is_seen(look, name, content, tmp_path):
    """Negative control: answers twice or torn, halves of weights, traces and pages, other exit codes and tracebacks are faults."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(Exception):
        look(tmp_path)


class Ended:
    """A process that has ended so."""

    def __init__(self, code: int):
        self.exitcode, self.join, self.is_alive = code, lambda limit: None, lambda: False


def test_a_hang_is_seen(monkeypatch):
    """Negative control: a try without end becomes a fault, and the tries go on."""
    monkeypatch.setitem(fuzz.KINDS, "sleep", lambda rng, folder: ("sleep", fuzz.outcome(lambda: time.sleep(60))))
    faults: list[str] = []
    assert fuzz.run("sleep", 2, seconds=0.1, report=faults.append) == {"faults": 2} and "Hang" in faults[0]


def test_a_try_can_be_had_again():
    """Would catch chance that the number of a try does not decide."""
    first, second = (fuzz.attempt("checkpoints", 3, 7, 120) for _ in range(2))
    assert first == second != fuzz.attempt("checkpoints", 3, 8, 120)
