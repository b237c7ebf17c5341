"""What goes to a user arrives: any script of the world as it is, what would command a terminal as U+FFFD, files whole or not at all."""

import io
import sys

import pytest

import program
from lab import files
from test_command_line import SHORT, run

TEXTS = {  # what each was turned into U+FFFD for
    "no-break space": "12\u00a0000\u202f€",
    "ideographic space": "一\u3000二",
    "joiners": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0915\u094d\u200d\u0937",
    "marks of direction": "\u05d0\u200f\u200e\u061c",
    "soft hyphen": "Donau\u00addampf",
    "emoji of several": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\U000e0067\U000e007f",
    "a letter newer than this Python": "\U0001e6c0",
    "private use": "\ue000",
    "new line and tab": "a\n\tb",
}


@pytest.mark.parametrize("what", TEXTS)
def test_text_of_any_script_is_left_alone(what):
    """Would catch Persian, Hindi, Hebrew, Chinese or French that comes out broken: not all that is no letter commands a terminal."""
    assert files.printable(TEXTS[what]) == TEXTS[what]


def test_what_commands_a_terminal_does_not_reach_it():
    """Would catch an escape, half a character, on which print fails, and a turned direction, which shows another text than there is."""
    bad = [
        *map(chr, range(32)),
        *map(chr, range(0x7F, 0xA0)),
        "\ud800",
        "\udfff",
        *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    ]
    for character in bad:
        kept = {"\n": "\n", "\t": "\t", "\r": ""}.get(character, "\ufffd")
        assert files.printable(f"a{character}b") == f"a{kept}b", repr(character)


@pytest.mark.parametrize("encoding, shown", [("cp1252", "12 € ??"), ("ascii", "12 ? ??"), ("utf-8", "12 € 中文"), (None, "12 € 中文")])
def test_an_answer_reaches_a_narrow_stdout(monkeypatch, encoding, shown):
    """Would catch an answer that is lost over one character, in a console with a code page or in a pipe under LANG=C."""
    out = io.TextIOWrapper(io.BytesIO(), encoding) if encoding else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    files.write("12 € 中文")
    out.seek(0)
    assert out.read() == shown + "\n"


def test_a_program_answers_in_the_encoding_it_is_given(saved, tmp_path):
    """Would catch the same where it matters, and a --watch that a narrow terminal ends."""
    code = "import sys; sys.stdout.reconfigure(encoding='ascii'); sys.stderr.reconfigure(encoding='ascii', errors='backslashreplace')"
    code += "; import load_weights; load_weights.Tokenizer.decode = lambda *_, **how: '中\u202eé'"
    command = ["--model", saved, "--prompt", "hello", "--watch", "--explain", *SHORT]
    assert program.run(command, code, stdout=tmp_path / "out", stderr=tmp_path / "err") == 0
    assert (tmp_path / "out").read_bytes() == b"???\n" and b"Traceback" not in (tmp_path / "err").read_bytes()


def test_what_is_closed_gets_nothing_of_the_other(saved, tmp_path):
    """Would catch counters between the words of an answer (print takes stdout where there is no stderr), and a traceback without stdout."""
    command = ["--model", saved, "--prompt", "hello", "--explain", *SHORT]
    assert program.run(command, stdout=tmp_path / "whole", stderr=tmp_path / "err") == 0
    assert program.run(command, "import sys; sys.stderr = None", stdout=tmp_path / "out", stderr=tmp_path / "err") == 0
    assert (tmp_path / "out").read_text() == (tmp_path / "whole").read_text()
    assert program.run(command, "import sys; sys.stdout = None", stdout=tmp_path / "out", stderr=tmp_path / "no") == 2
    assert (tmp_path / "no").read_text().endswith("\ndllm.py: the answer cannot be written: there is no standard output\n")


@pytest.mark.parametrize(
    "line", ['{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": ' + "1" * 5000 + "}", "[" * 10**5]
)
def test_what_is_no_json_is_no_object(line):
    """Would catch numbers that Python's reader invents, which no browser takes, and a reader that fails in its own way."""
    assert files.json_object(line) is None
    assert files.json_object('{"a": 1e9}') == {"a": 1e9}


def test_a_name_that_is_too_long_is_one_line(saved, capsys):
    """Would catch a traceback from asking whether there is such a file."""
    name = "a" * 300 + ".jsonl"
    assert run(capsys, "--model", saved, "--prompt", "a", "--trace", name) == ("", f"dllm.py: --trace {name}: File name too long\n", 2)
