"""What a decode asks for before it begins: numbers by hand, and no less than it then takes."""

import json
import tempfile
from pathlib import Path

import pytest
import torch

import dllm
from conftest import random_model
from model import Config, Int8Linear, Linear

SETTINGS = {"gen_length": 16, "block_length": 8, "compile": False}
WORDS = 20_000  # more than ROWS of an int8 matrix
CELLS = 8 * WORDS  # of a row
SLOT = 2 * 2 * 32 * 4  # keys and values of two layers, in float32
CACHE = (3 + 16) * SLOT
PROMPTS = [[1, 2, 3]] * 4


def model(int8: bool = False):
    model = random_model(0, config=Config(32, 2, 4, 48, WORDS, WORDS - 1, WORDS - 2, 4, 512))
    for name, module in list(model.named_modules()) if int8 else ():
        if isinstance(module, Linear):
            model.set_submodule(name, Int8Linear(module.weight))
    return model


def most_at_once(call) -> int:
    """Bytes that a call holds at most, beyond what was held before."""
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(profile_memory=True) as seen:
            call()
        seen.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    held, most = 0, 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    "strategy, own, each, once",
    [
        ("llada", {}, CACHE + 16 * CELLS, 0),
        ("llada", {"temperature": 0.7}, CACHE + 24 * CELLS, 0),
        # twice the rows of a forward, of which the noise knows nothing
        ("llada", {"temperature": 0.7, "cfg_scale": 1.0}, 2 * (CACHE + 16 * CELLS) + 8 * CELLS, 0),
        ("credit", {}, CACHE + 24 * CELLS, 0),
        # the canvas and three drafts: the cache of each, and logits twice
        ("freedave", {"depth": 4}, CACHE + 16 * CELLS + 4 * (CACHE + 2 * 4 * CELLS), 0),
        # the head's first 16,384 rows of 32 numbers
        ("llada", {"int8": True}, CACHE + 16 * CELLS, 16_384 * 32 * 4),
    ],
    ids=["plain", "noise", "guided", "credit", "drafts", "int8"],
)
def test_a_decode_takes_no_more_than_was_asked_for(monkeypatch, strategy, own, each, once):
    """Would catch noise, credit, drafts, or the copies of 8-bit weights, that nobody counted: a decode that begins and then runs out of
    memory; and a decode that is refused though it takes half."""
    asked = []
    monkeypatch.setattr(dllm, "check_memory", lambda what, bytes, device: asked.append(bytes))
    mine, own = model("int8" in own), {name: own[name] for name in own if name != "int8"}
    took = most_at_once(lambda: [None for _ in dllm.decode(mine, PROMPTS, strategy, **SETTINGS, **own)])
    assert asked == [4 * each + once]
    assert 0.5 < took / asked[0] < 1.01  # masks, ids and what a forward keeps of a layer
