"""`--chat`: each turn sees the turns before it, and nothing that goes wrong in one ends the conversation."""

import io
import sys

import pytest

import dllm
from lab import chat as chats
from load_weights import load_model, load_tokenizer
from test_command_line import SHORT, run


def talk(capsys, monkeypatch, saved, text: str | bytes, *arguments):
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    return run(capsys, "--model", saved, "--chat", *SHORT, *arguments)


def expected(saved, *turns: str) -> list[str]:
    """The answers to these turns, each with all before it in its prompt."""
    model, tokenizer = load_model(saved), load_tokenizer(saved)
    messages, found = [], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        result = dllm.generate(model, tokenizer.encode_chat(messages), gen_length=16, block_length=8)
        found.append(tokenizer.decode(result.answer()))
        messages.append({"role": "assistant", "content": found[-1]})
    return found


def test_every_turn_sees_the_turns_before_it(saved, capsys, monkeypatch):
    """Would catch turns that are answered alone, or whose answers are forgotten."""
    out, err, code = talk(capsys, monkeypatch, saved, "hello\nwho is there\n\nwhat now\n")
    assert code == 0 and out.splitlines() == expected(saved, "hello", "who is there", "what now")
    assert out.splitlines()[1] != expected(saved, "who is there")[0]
    assert len(err.splitlines()) == 3 and all("forwards" in line for line in err.splitlines())


def test_commands_begin_anew_and_end(saved, capsys, monkeypatch):
    """Would catch a command that is sent to the model."""
    out, err, code = talk(capsys, monkeypatch, saved, "hello\n/new\nwhat now\n/sing\n/quit\nnever\n")
    assert code == 0 and out.splitlines() == expected(saved, "hello") + expected(saved, "what now")
    assert "/sing is unknown: /new begins another conversation" in err


def test_a_turn_that_fails_is_forgotten_and_the_conversation_goes_on(saved, capsys, monkeypatch):
    """Would catch a conversation that ends in a traceback, or a long turn that makes every later one too long."""
    text = b"hello\n" + b"a" * 600 + b"\n\xff\xfe\nwhat now\n"
    out, err, code = talk(capsys, monkeypatch, saved, text)
    assert code == 0 and out.splitlines() == expected(saved, "hello", "what now")
    assert "together more than the model's 512" in err and "not valid UTF-8" in err


def test_an_interrupted_answer_is_forgotten(saved, capsys, monkeypatch):
    """Would catch Ctrl-C that ends the conversation, or that leaves half a turn in it."""
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return dllm.finish(*arguments)

    monkeypatch.setattr(chats, "finish", interrupted)
    out, err, code = talk(capsys, monkeypatch, saved, "hello\nstop me\nwhat now\n")
    assert code == 0 and out.splitlines() == expected(saved, "hello", "what now") and "stopped; the turn is forgotten" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a"], "--prompt has no meaning with --chat"),
        (["--infill", "___"], "--infill has no meaning with --chat"),
        (["--trace", "run.jsonl"], "--trace has no meaning with --chat"),
        (["--gen-length", "12"], "gen_length 12 is not a multiple"),
        (["--gen-length", "512"], "together more than the model's 512"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_turn(saved, capsys, monkeypatch, arguments, message):
    """Would catch a person who types a turn for nothing."""
    out, err, code = talk(capsys, monkeypatch, saved, "hello\n", *arguments)
    assert (out, code) == ("", 2) and message in err and err.count("\n") == 1
