"""What a strategy's page says one will see is what one sees: every "Try" is typed in, on the embedded model."""

import functools
import io
import json
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from lab import command_line
from lab.gallery import PROMPT
from lab.tasks import is_held_out
from strategies import STRATEGIES

ROOT = Path(__file__).parent.parent
RIGHT = "6 * 2 = 12. 12 + 26 = 38. 38 + 4 = 42. 42 - 8 = 34. The answer is 34."
HEAD = ["| add to the command | answer | forwards | rows |", "|---|---|---:|---:|"]
load_model = functools.cache(command_line.load_model)
load_tokenizer = functools.cache(command_line.load_tokenizer)


def page_of(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def first_command(page: str) -> str:
    """The page's command, which its tries add to."""
    return re.search(r"^    (python dllm\.py .*)$", page, re.MULTILINE)[1]


def command_of(page: str) -> list[str]:
    """What follows dllm.py in it."""
    return shlex.split(first_command(page))[2:]


def try_of(page: str) -> tuple[list[str], str]:
    """The lines of the table under **Try.**, and all the words around it."""
    text = page.partition("\n**Try.**")[2].partition("\n## ")[0]
    lines = re.findall(r"^\|.*$", text, re.MULTILINE)
    return lines, re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)


def added(line: str) -> str:
    """What a line of the table adds to the command."""
    first = line.split(" | ")[0].removeprefix("| ")
    return "" if first == "nothing" else re.fullmatch("`(.*)`", first)[1]


def numbers(words: str) -> set[str]:
    """Those in some text, but for the names of pages that it links to."""
    return set(re.findall(r"\d+(?:\.\d+)?", re.sub(r"\]\([^)]*\)|[a-z]+\d\w*", "", words)))


def judged(text: str) -> str:
    """The answer in a word: a right number may stand below wrong sums, and no number may stand there."""
    number = (re.findall(r"The answer is (\d+)", text) or [None])[-1]
    if number is None:
        return f"{text or 'nothing'}, wrong"
    return "34" if text == RIGHT else "34, by wrong sums" if number == "34" else f"{number}, wrong"


@functools.cache
def printed(*arguments: str) -> tuple[str, str]:
    """What the command line says to these arguments, on stdout and stderr: always the same."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        command_line.main([*arguments, "--json"])
    return out.getvalue(), err.getvalue()


def seen(command: list[str], flags: str, monkeypatch) -> tuple[str, str]:
    """What whoever types in these flags gets: the line of the table as it should be, and the text of the answer."""
    monkeypatch.setattr(command_line, "load_model", load_model)
    monkeypatch.setattr(command_line, "load_tokenizer", load_tokenizer)
    out, err = printed(*command, *shlex.split(flags))
    text, counters = out.strip(), json.loads(err)
    first = f"`{flags}`" if flags else "nothing"
    return f"| {first} | {judged(text)} | {counters['forwards']} | {counters['rows']} |", text


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_a_page_lets_one_try_is_what_one_sees(name, monkeypatch):
    """Would catch a Try that is not so, or no longer: another answer, more forwards, other rows, a flag that is refused. To mend it,
    paste what this test expects, and read whether the words below the table are still true."""
    page = page_of(name)
    lines, words = try_of(page)
    assert lines[:2] == HEAD and lines[2].startswith("| nothing |") and len(lines) >= 4
    expected, texts = zip(*(seen(command_of(page), added(line), monkeypatch) for line in lines[2:]))
    assert lines == [*HEAD, *expected]
    assert len({line.split(" | ", 1)[1] for line in expected}) > 1, "all look alike: nothing is shown"
    assert numbers(words) <= numbers(" ".join([*lines, *texts, *command_of(page)])), "a number that nobody sees"


@pytest.mark.parametrize("true, false", [("34, by wrong sums", "34"), ("| 8 | 1440 |", "| 7 | 1440 |"), ("1440", "1441")])
def test_a_page_that_is_wrong_is_found_out(true, false, monkeypatch):
    """Negative control for the test above: it must fail if a page claims another answer, fewer forwards, or more rows."""
    page = page_of("llada")
    assert page.count(true) == 1
    monkeypatch.setitem(globals(), "page_of", lambda name: page.replace(true, false))
    with pytest.raises(AssertionError):
        test_what_a_page_lets_one_try_is_what_one_sees("llada", monkeypatch)


def test_every_page_asks_the_same_question_that_no_model_was_trained_on():
    """Would catch a page whose figures cannot be held against another's, and an answer that was learnt by heart."""
    assert is_held_out(RIGHT)
    for name in STRATEGIES:
        command = command_of(page_of(name))
        assert command[:4] == ["--prompt", PROMPT, "--strategy", name]
    asked = re.findall(r'dllm\.py --prompt "(.*?)"', (ROOT / "README.md").read_text())
    assert asked[0] == PROMPT and asked.count(PROMPT) > 1


@pytest.mark.parametrize(
    "text, judgment",
    [
        (RIGHT, "34"),
        (RIGHT.replace("38", "48"), "34, by wrong sums"),
        (RIGHT.replace("is 34", "is 44"), "44, wrong"),
        ("", "nothing, wrong"),
        ("6 6 = =..", "6 6 = =.., wrong"),
    ],
)
def test_a_right_number_below_wrong_sums_is_told(text, judgment):
    """Would catch a Try that calls an answer right whose sums are not."""
    assert judged(text) == judgment
