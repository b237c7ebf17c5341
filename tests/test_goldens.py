"""Equality with the original projects' rules: 189 decodes of three checkpoints, tokens and forwards (tests/goldens/README.md)."""

import json
from pathlib import Path

import pytest

from dllm import generate
from load_weights import load_model

GOLDENS = Path(__file__).parent / "goldens"
CASES = {folder: [json.loads(line) for line in (GOLDENS / folder / "cases.jsonl").open()] for folder in "abc"}


def test_there_are_189_cases_of_five_strategies():
    """Would catch a truncated copy of the goldens, with which the test below passes by checking nothing."""
    assert sum(map(len, CASES.values())) == 189
    assert {case["strategy"] for cases in CASES.values() for case in cases} == {"llada", "fast-dllm", "localleap", "streaming", "d2f"}


@pytest.mark.parametrize("strategy", ["llada", "fast-dllm", "localleap", "streaming", "d2f"])
@pytest.mark.parametrize("folder", "abc")
def test_tokens_and_forwards_equal_the_originals(folder, strategy):
    """Would catch any change of rule, view, position or schedule: the models are random, so every slip changes tokens."""
    model = load_model(GOLDENS / folder, device="cpu")
    for case in CASES[folder]:
        if case["strategy"] == strategy:
            result = generate(model, case["prompt"], strategy, **case["settings"])
            assert result.tokens[0, : len(case["tokens"])].tolist() == case["tokens"], case["settings"]
            assert result.nfe == case["nfe"], case["settings"]
