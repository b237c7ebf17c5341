"""`--infill` reads holes as people write them, and a trace of an infill replays to it. What templates promise is in test_templates.py."""

import pytest
import torch
from hypothesis import given

from conftest import CHARACTERS, EOS, MASK, random_model, random_prompt
from dllm import prepare, stream
from lab import infill
from lab import trace as traces
from lab.oracle import Oracle
from shared import one_canvas, seeds
from test_command_line import run
from test_templates import fill, holes
from test_trace import recorded


@given(seeds, one_canvas)
def test_a_trace_of_an_infill_replays_to_it(tmp_path_factory, seed, case):
    """Would catch a trace that starts from masks only."""
    strategy, settings = case
    template = holes(seed, 21)
    canvas = prepare(random_model(seed), random_prompt(seed, 7), strategy, {"block_length": 8} | settings, template)
    records = recorded(stream(canvas), canvas, tmp_path_factory.mktemp("traces") / "run.jsonl")
    padding = canvas.settings.gen_length - 21
    assert list(traces.replay(records))[-1] == fill(seed, strategy, template, random_prompt(seed, 7), **settings).tokens[0].tolist()
    assert dict(records[0]["given"]) == {7 + i: token for i, token in enumerate(template + [EOS] * padding) if token != MASK}


# --- text with holes


class Characters:
    names = {}

    def encode(self, text):
        return [CHARACTERS.index(c) for c in text]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ab ___ c", "ab# c"),  # the space before a hole is part of what is written there
        ("___", "#"),
        ("___3", "###"),
        ("a___2b ___.", "a##b#."),
        (" ___ ___12", "#" * 13),
    ],
)
def test_a_text_with_holes_becomes_ids(text, tokens):
    """Would catch a space that the token in the hole would double, a digit that is left over, and a hole at either end."""
    assert infill.template(text, Characters(), MASK) == [MASK if c == "#" else CHARACTERS.index(c) for c in tokens]


@pytest.mark.parametrize(
    ("text", "message"),
    [("abc", "no hole"), ("a __ b", "no hole"), ("____", "no hole"), ("___0", "0 tokens"), ("___999999999999", "999999999 tokens")],
)
def test_a_text_without_a_hole_is_refused(text, message):
    """Would catch a decode of nothing, a line of underscores that is filled in, and a number that takes all memory."""
    with pytest.raises(ValueError, match=message):
        infill.template(text, Characters(), MASK)


def test_the_command_line_prints_the_whole_text(saved, capsys):
    """Would catch an answer that is cut off, or that repeats the padding; and holes without a prompt where no token begins a text."""
    out, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--infill", "a story___3of ___2.", "--block-length", "8")
    assert code == 0 and len(out) == len("a story###of##.\n")
    assert out.startswith("a story") and out[10:12] == "of" and out.endswith(".\n") and " tokens 5 " in err
    _, err, code = run(capsys, "--model", saved, "--infill", "a ___")
    assert code == 2 and "give a --prompt beside --infill" in err and err.count("\n") == 1
    _, err, code = run(capsys, "--model", saved, "--prompt", "a", "--infill", "a b")
    assert code == 2 and "no hole" in err


def test_a_text_alone_begins_with_the_token_that_begins_texts(capsys):
    """Would catch a template that is decoded as the answer to nothing; and an oracle that cannot be filled in."""
    out, _, code = run(capsys, "--model", "oracle:permutation-6", "--infill", "D___2B___2", "--block-length", "6", "--strategy", "llada")
    assert code == 0 and sorted(out.strip()) == list("ABCDEF") and out[0] == "D" and out[3] == "B"
    assert Oracle("permutation-6").contains(torch.tensor([Oracle("permutation-6").encode(out.strip())])).all()
    _, err, code = run(capsys, "--model", "oracle:permutation-6", "--infill", "x___5")
    assert code == 2 and "'x' is no symbol of this language" in err
