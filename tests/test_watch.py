"""--watch and --explain: what a terminal of any width shows, what a pipe gets, and that neither is ever left in a bad state."""

import fcntl
import io
import os
import pty
import re
import shlex
import signal
import struct
import termios
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

import dllm
import program
from conftest import random_model, random_prompt
from lab import command_line, watch
from load_weights import load_model, load_tokenizer
from shared import DRAFTING, GUIDED, LENGTHS, one_canvas, seeds
from strategies import STRATEGIES, options
from test_command_line import SHORT, run
from test_trace import model_with_ends

ROOT = Path(__file__).parent.parent
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"  # a terminal's second screen


class Words:
    """A tokenizer whose ids mean these texts, and whose joined bytes are the text, as in byte-level vocabularies."""

    def __init__(self, *texts: str | bytes):
        self.texts = [text if isinstance(text, bytes) else text.encode() for text in texts]

    def decode(self, ids, skip_special_tokens=True):
        return b"".join(self.texts[i % len(self.texts)] for i in ids).decode(errors="replace")


def observed(tokenizer, strategy="fast-dllm", seed=0, own=None, **settings):
    """An observer and its steps, over a random model."""
    canvas = dllm.prepare(random_model(seed), random_prompt(seed, 7), strategy, LENGTHS | settings)
    observer = watch.Observer(canvas, tokenizer, own or {})
    for step in dllm.stream(canvas):
        observer.see(step)
        yield observer, step


def drawn(picture, width: int, height: int | None = None) -> list[str]:
    """The lines of a picture in a terminal of this size, as plain text."""
    console = Console(file=io.StringIO(), width=width, height=height or 25)
    lines = console.render_lines(picture, console.options.update(width=width, height=height), pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in lines if line]


# --- the picture -------------------------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("ab \n\t中文字🙂é\x1b\u202e"), max_size=30)


@given(seeds, st.lists(TEXTS, min_size=1, max_size=9), st.integers(4, 90))
def test_no_line_is_wider_than_the_terminal(seed, texts, width):
    """Would catch a wide character counted as one column, which breaks every line after it in a terminal that redraws."""
    for observer, _ in observed(Words(*texts), seed=seed, threshold=0.5):
        assert all(cell_len(line) <= width for line in drawn(observer.picture(observer.sentence()), width))


@given(seeds, st.lists(TEXTS, min_size=1, max_size=9), st.integers(20, 90))
def test_folding_loses_no_text(seed, texts, width):
    """Would catch a token that is dropped or cut where a line ends."""
    for observer, _ in observed(Words(*texts), seed=seed, threshold=0.5):
        picture = observer.picture()
        shown = [line.split(watch.BORDER, 1)[1] for line in drawn(picture, width) if watch.BORDER in line]
        squeezed = lambda text: re.sub(r"\s", "", text)  # what stands at the end of a line may be a space
        assert squeezed("".join(shown)) == squeezed("".join(text for block in picture.blocks for text in block.plain))


def test_wide_characters_are_folded_whole():
    """Would catch a wide character that counts as one column, or that is cut in two."""
    picture = watch.Picture([Text("中文 字ab 一二三四五")], range(1), Text("中文字"))
    assert drawn(picture, 7) == ["1│中文", " │字ab", " │一二", " │三四", " │五", "中文字"]


def test_a_character_of_several_tokens_is_shown_once():
    """Would catch a row of replacement characters where bytes of one character are tokens of their own."""
    smile = "🙂".encode()
    for observer, step in observed(Words("a"), "llada"):
        pass
    observer.tokenizer = Words("a", *(smile[i : i + 1] for i in range(4)), "b")
    observer.ids[7:] = [0, 1, 2, 3, 4, 5, 1, 39, 4, 0] + [5] * 14
    assert observer.texts()[:10] == ["a", "🙂", "", "", "", "b", "\ufffd", watch.MASKED, "\ufffd", "a"]


def test_every_end_token_is_shown_as_an_end():
    """Would catch the name of a model's end of turn in the picture, where its end of text is a sign."""
    canvas = dllm.prepare(model_with_ends(5), random_prompt(0, 7), "llada", LENGTHS)
    observer = watch.Observer(canvas, Words("x"), {})
    observer.ids[7:] = [1, 5, 38, *[1] * 21]
    assert observer.texts()[:4] == ["x", watch.ENDED, watch.ENDED, "x"]


def test_a_model_cannot_command_the_terminal():
    """Would catch an escape sequence of the model's that reaches the terminal: it could clear the screen or retitle the window."""
    for observer, _ in observed(Words("\x1b[2J", "\x07", "\u202e", "\x9b1m"), threshold=0.5):
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
        console.print(observer.picture(observer.sentence()))
        left = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue() + observer.line())
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", left)


def test_blocks_have_borders_and_the_open_one_stands_out():
    """Would catch a picture that hides where the decode is."""
    for observer, step in observed(Words("x"), "llada"):
        blocks = drawn(observer.picture(), 80)[:3]
        assert [line[:2] for line in blocks] == [f"{i}{watch.BORDER}" for i in (1, 2, 3)] and [len(line) for line in blocks] == [10] * 3
        assert list(observer.picture().open) == [(step.window.start - 7) // 8]
        assert "".join(blocks).count(watch.MASKED) == 24 - step.nfe


def test_what_is_written_now_is_reversed_and_coloured_by_confidence():
    """Would catch a highlight that stays on a token after its step, and colours that are not the confidences'."""
    for observer, step in observed(Words("x"), threshold=0.5):
        for at, candidate in enumerate(step.candidates[0].tolist()):
            slot = step.window.start + at
            style, confidence = observer.style(slot), step.scores.confidence[0, at].item()
            assert bool(style.reverse) == bool(step.commit[0, at])
            assert not candidate or style.color.triplet == watch.shade(confidence)
    assert watch.shade(0) == watch.ORANGE and watch.shade(0.5) == watch.GREY and watch.shade(1) == watch.BLUE


def test_a_long_answer_follows_the_open_block():
    """Would catch a picture whose bottom, with all that happens, is below the window."""
    settings = {"gen_length": 240, "block_length": 8, "threshold": 0.5}
    for observer, step in observed(Words("x"), **settings):
        lines = drawn(observer.picture(), 40, 12)
        opened = (step.window.start - 7) // 8 + 1
        assert len(lines) == 12 and any(line.startswith(f"{opened:2}{watch.BORDER}") for line in lines) and "forward" in lines[10]


# --- in words ----------------------------------------------------------------------------------------------------------------------------


@given(seeds, one_canvas)
def test_the_sentence_agrees_with_the_step(seed, case):
    """Would catch numbers that are another step's, or counted otherwise than the rule counts."""
    strategy, settings = case
    own = {k: v for k, v in settings.items() if k in options(STRATEGIES[strategy])}
    for observer, step in observed(Words("x"), strategy, seed, own, **settings):
        sentence = observer.sentence()
        written = int((step.commit & step.candidates).sum())
        assert sentence.startswith(f"step {step.nfe}: ") and f"committed {written}{' (' if written else ', '}" in sentence
        rows, whole = map(int, re.search(r"rows (\d+) of (\d+)$", sentence).groups())
        assert (
            rows == step.rows
            and whole == 31 * (2 if settings.get("cfg_scale") else 1)
            and (rows <= whole or strategy in (*DRAFTING, *GUIDED))
        )
        masked = int(step.candidates.sum())
        if threshold := own.get("threshold", own.get("skip_threshold")):
            sure = int((step.candidates & (step.scores.confidence >= threshold)).sum())
            assert f"{sure} of {masked} masked {'>' if strategy == 'd2f' else '>='} {threshold:.2f}" in sentence
        else:
            assert f": {masked} masked, " in sentence


def test_explain_says_one_line_a_forward(saved, capsys):
    """Would catch words on stdout, where the answer is."""
    plain = run(capsys, "--model", saved, "--prompt", "hello", "--threshold", "0.4", *SHORT)
    out, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--threshold", "0.4", "--explain", *SHORT)
    *sentences, counters = err.splitlines()
    assert (out, code) == (plain[0], 0) and f"forwards {len(sentences)} " in counters
    pattern = r"step \d+: \d+ of \d+ masked >= 0\.40, committed \d+ \(0\.\d\d( to \d\.\d\d)?\); block [12], rows \d+ of 23"
    assert all(re.fullmatch(pattern, sentence) for sentence in sentences)


def test_tokens_taken_back_and_an_early_end_are_told():
    """Would catch a sentence that is silent about what no rule committed."""
    for observer, step in observed(Words("x"), "llada"):
        pass
    observer.record |= {"writes": [[9, 1], [20, 38], [21, 38]], "unwrites": [[8, 39]]}
    observer.committed = [0.5]
    assert observer.sentence().startswith(
        "step 24: 1 masked, committed 1 (0.50), ended and filled 2 with EOS, took back 1; block 3, rows 31 of 31"
    )


def test_a_threshold_is_not_rounded():
    """Would catch "0 of 2 masked >= 0.99, committed 1 (0.99)", of a threshold of 0.995."""
    for threshold, shown in ((0.9, "0.90"), (0.995, "0.995"), (0.999, "0.999"), (1, "1.00")):
        for observer, _ in observed(Words("x"), own={"threshold": threshold}, threshold=threshold):
            assert f" masked >= {shown}, " in observer.sentence()


def test_the_sentences_in_the_documents_are_those_of_the_command_above_them(capsys):
    """Would catch a sample that the program does not print."""
    text = (ROOT / "docs" / "watching.md").read_text()
    command, sample = re.search(r"    python dllm.py (.* --explain)\n\n((?:    step .*\n)+)", text).groups()
    command_line.main(shlex.split(command))
    said, numbers = capsys.readouterr().err, lambda text: [float(n) for n in re.findall(r"\d+(?:\.\d+)?", text)]
    for line in map(str.strip, sample.splitlines()):
        printed = next(other for other in said.splitlines() if other.startswith(line[: len("step 3:")]))
        assert re.sub(r"\d", "", printed) == re.sub(r"\d", "", line) and numbers(printed) == pytest.approx(numbers(line), abs=0.011)


def test_the_sample_of_the_documents_writes_words_first():
    """Would catch a picture of an answer that is nothing but its end for eleven forwards."""
    model, tokenizer = load_model(command_line.TINY), load_tokenizer(command_line.TINY)
    for page in ("README.md", "docs/watching.md"):
        words = shlex.split(next(line for line in (ROOT / page).read_text().splitlines() if " --watch" in line and " --prompt" in line))
        lengths = {name: int(words[words.index("--" + name.replace("_", "-")) + 1]) for name in ("gen_length", "block_length")}
        prompt = command_line.encode(tokenizer, words[words.index("--prompt") + 1])
        for _, step in zip(range(8), dllm.decode(model, prompt, "llada", **lengths)):
            assert (step.x[0, len(prompt) :] == model.config.eos_token_id).sum() == 0


# --- a real terminal, and none -----------------------------------------------------------------------------------------------------------


def resize(terminal: int, columns: int, rows: int = 24) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Terminal:
    """`python dllm.py --watch` with stderr on a terminal and stdout in a pipe."""

    def __init__(self, saved, tmp_path, *flags, columns=80, **environment):
        self.ours, theirs = pty.openpty()
        resize(theirs, columns)
        command = ["--model", saved, "--prompt", "hello", "--strategy", "llada", *SHORT, *flags]
        self.out = tmp_path / "out"
        environment = {"TERM": "xterm-256color"} | environment
        self.process = program.start(command, "", self.out, os.ttyname(theirs), **environment)
        self.theirs = theirs  # open until the end: what nobody holds would be gone before the other process opens it
        self.shown = b""
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        try:
            while chunk := os.read(self.ours, 2**16):
                self.shown += chunk
        except OSError:  # how Linux says that the other side is closed
            pass

    def wait_for(self, text: str) -> None:
        until = time.time() + 120
        while text.encode() not in self.shown and time.time() < until:
            time.sleep(0.02)

    def end(self) -> tuple[str, str, int]:
        self.process.join(120)
        os.close(self.theirs)
        self.reader.join()
        os.close(self.ours)
        return self.out.read_text(), self.shown.decode(), self.process.exitcode


def words(text: str) -> str:
    """What is left without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def pictures(shown: str) -> list[list[str]]:
    """The lines of every picture that was drawn."""
    return [words(picture).splitlines() for picture in shown.split(LEAVE)[0].split("\x1b[H")]


def test_a_terminal_is_redrawn_in_place_and_left_as_it_was(saved, tmp_path, capsys):
    """Would catch a picture on stdout, a terminal left on its second screen or without a cursor, and a last picture that is gone."""
    answer = run(capsys, "--model", saved, "--prompt", "hello", "--strategy", "llada", *SHORT)[0]
    out, shown, code = Terminal(saved, tmp_path, "--watch", 0, "--explain").end()
    assert (out, code) == (answer, 0)
    assert shown.count(ENTER) == shown.count(LEAVE) == 1 and shown.count("\x1b[?25h") == shown.count("\x1b[?25l") == 1
    drawn, left = shown.split(LEAVE)
    assert all(f"forward {n} " in words(drawn) for n in range(1, 17)) and "38;5;" in drawn
    assert words(left).count("step ") == 16 and "forward 16 " in words(left) and "forwards 16" in left


def test_a_window_may_change_its_size(saved, tmp_path):
    """Would catch lines of the old width in the new window."""
    terminal = Terminal(saved, tmp_path, "--watch", 0.15)
    terminal.wait_for("forward 2 ")
    resize(terminal.ours, 20)
    terminal.wait_for("forward 9")
    _, shown, code = terminal.end()
    assert code == 0 and max(map(cell_len, pictures(shown)[2])) > 20 and all(cell_len(line) <= 20 for line in pictures(shown)[-1])


@pytest.mark.parametrize("columns", [20, 21, 200])
def test_every_width_is_kept(saved, tmp_path, columns):
    """Would catch a line that a narrow window wraps."""
    _, shown, code = Terminal(saved, tmp_path, "--watch", 0, columns=columns).end()
    assert code == 0 and all(cell_len(line) <= columns for picture in pictures(shown) for line in picture)


def test_a_terminal_that_cannot_redraw_gets_lines(saved, tmp_path):
    """Would catch escape sequences in a terminal that prints them."""
    _, shown, code = Terminal(saved, tmp_path, "--watch", TERM="dumb").end()
    assert code == 0 and "\x1b" not in shown and len(re.findall(r"^ *\d+  ", shown, re.MULTILINE)) == 16


def test_no_color_is_honoured(saved, tmp_path):
    """Would catch colour for somebody who asked for none; what is written now is still bold and reversed."""
    _, shown, code = Terminal(saved, tmp_path, "--watch", 0, NO_COLOR="1").end()
    codes = {number for codes in re.findall(r"\x1b\[([0-9;]*)m", shown) for number in codes.split(";")}
    assert code == 0 and "7" in codes and codes <= {"", "0", "1", "2", "7"}


def test_an_interrupt_restores_the_terminal(saved, tmp_path):
    """Would catch a terminal that stays on its second screen after control-C."""
    terminal = Terminal(saved, tmp_path, "--watch", 5)
    terminal.wait_for("forward 1 ")
    os.kill(terminal.process.pid, signal.SIGINT)
    _, shown, code = terminal.end()
    assert code == 130 and shown.count(ENTER) == shown.count(LEAVE) == 1 and "Traceback" not in shown


def test_a_pipe_gets_plain_lines(saved, capsys):
    """Would catch escape sequences in a log."""
    out, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--strategy", "llada", "--watch", *SHORT)
    lines = err.splitlines()
    assert code == 0 and "\x1b" not in err and len(lines) == 17
    assert [int(line[:4]) for line in lines[:16]] == list(range(1, 17)) and lines[15][6:].replace(watch.ENDED, "").startswith(
        out.rstrip("\n")
    )


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "61"])
def test_a_time_that_is_none_is_refused(saved, capsys, seconds):
    """Would catch a wait that never ends, or a traceback from the clock."""
    out, err, code = run(capsys, "--model", saved, "--prompt", "a", f"--watch={seconds}")
    assert (out, code) == ("", 2) and err == f"dllm.py: watch is {float(seconds)!r}, expected 0 to 60 seconds\n"
