"""The README's first screen: its pictures are those that the program draws, and its samples what the program prints."""

import re

import pytest

from lab import command_line, gallery, pictures
from lab.watch import ENDED
from test_tries import PROMPT, RIGHT, ROOT, judged, load_model, load_tokenizer

DRAWN = ("decode.svg", "curve.svg")
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    for module in (command_line, gallery):
        monkeypatch.setattr(module, "load_model", load_model)
        monkeypatch.setattr(module, "load_tokenizer", load_tokenizer)


def test_the_pictures_are_those_that_the_command_draws(tmp_path, monkeypatch):
    """Would catch a picture of another model, or of a table that was measured anew. To mend it: python -m lab.gallery."""
    monkeypatch.setattr(gallery, "FOLDER", tmp_path)
    gallery.draw_for_readme()
    for name in DRAWN:
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "gallery" / name).read_bytes(), name


def test_the_curve_moves_with_its_table(tmp_path, monkeypatch):
    """Negative control for the test above: a point that was measured otherwise is drawn otherwise."""
    other = tmp_path / "results.md"
    table = pictures.RESULTS.read_text()
    changed = re.sub(r"(\| llada:\S*steps=16 +\|) *[\d.]+%", r"\1 99.9%", table)
    assert changed != table
    other.write_text(changed)
    for name in ("one.svg", "two.svg"):
        pictures.draw_curve(tmp_path / name)
        monkeypatch.setattr(pictures, "RESULTS", other)
    assert (tmp_path / "one.svg").read_text() != (tmp_path / "two.svg").read_text()


def test_the_pictures_are_for_light_and_dark_screens_and_stand_first():
    """Would catch a picture that is black on black, loads something, or stands below what a reader sees first."""
    for name in DRAWN:
        drawn = (ROOT / "docs" / "gallery" / name).read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in drawn
        assert not re.search(r"url\(|<script|<image|@import", drawn)
        assert README.index(f"docs/gallery/{name}") < README.index("python3 -m venv")


def asked(flags: list[str], capsys) -> tuple[str, str]:
    command_line.main(["--prompt", PROMPT, *flags])
    printed = capsys.readouterr()
    return printed.out.strip(), printed.err


def test_the_sample_is_what_the_first_command_prints(capsys):
    """Would catch a sample of another model or prompt, and figures below it that are not so."""
    text, counters = re.search(r"```\n(.*)\n(strategy .*)\n```", README).groups()
    answer, err = asked([], capsys)
    assert (text, counters.partition("  seconds")[0]) == (answer, err.partition("  seconds")[0]) and text == RIGHT
    said = re.search(r"\nSeven forwards for 29 tokens.*?\n\n", README, re.DOTALL)[0]
    for flags, forwards, judgment in [
        ([], "Seven", "34"),
        (["--strategy", "llada"], "128", "34"),
        (["--strategy", "streaming"], "three", "34"),
        (["--threshold", "0.5"], "five for a wrong one", "44, wrong"),
    ]:
        answer, err = asked(flags, capsys)
        number = {"Seven": 7, "128": 128, "three": 3, "five for a wrong one": 5}[forwards]
        assert f"forwards {number} " in err and judged(answer) == judgment
        assert forwards in said and " ".join(flags) in said
    assert "forwards 4 " in asked(["--eos", "stop"], capsys)[1] and (ROOT / "docs/gallery/decode.svg").read_text().count("forward ") == 4


def test_what_is_watched_begins_with_words(capsys):
    """Would catch an example for --watch that writes the end of an answer before its first word."""
    flags = re.search(rf'^python dllm.py --prompt "{re.escape(PROMPT)}" (.*--watch.*)$', README, re.MULTILINE)[1].split()
    frames = re.findall(r"^ +\d+  (.*)$", asked(flags, capsys)[1], re.MULTILINE)
    before = [frame.partition(ENDED)[0] for frame in frames if ENDED in frame]
    assert before and all(re.search(r"\w", words) for words in before)
    frames = re.findall(r"^ +\d+  (.*)$", asked([*flags, "--block-length", "32"], capsys)[1], re.MULTILINE)
    before = [frame.partition(ENDED)[0] for frame in frames if ENDED in frame]
    assert not re.search(r"\w", before[0])  # negative control: in one block the end comes first


def test_a_rule_of_ones_own_does_what_its_page_says(capsys):
    """Would catch figures in docs/idea.md that are not so."""
    page = (ROOT / "docs" / "idea.md").read_text()
    ours, theirs = re.search(r"right in (\d+) forwards, where `--strategy fast-dllm` takes (\d+)", page).groups()
    rule = ["--strategy", str(ROOT / "docs" / "my_rule.py") + ":rule", "--cache", "dual"]
    for flags, forwards in ((rule, ours), (["--strategy", "fast-dllm", "--cache", "dual"], theirs)):
        answer, err = asked(flags, capsys)
        assert answer == RIGHT and f"forwards {forwards} " in err
