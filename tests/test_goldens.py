"""Equality with the original projects' rules, and with their authors' own code: tokens and forwards (tests/goldens/README.md)."""

import functools
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from dllm import generate
from lab.save import save_filter
from load_weights import load_model
from strategies import STRATEGIES

GOLDENS = Path(__file__).parent / "goldens"
sys.path.insert(0, str(GOLDENS / "related"))
import checkpoints  # noqa: E402

NEWER = ("eb", "frechet", "klass", "wino", "dus", "spaced", "pc", "p2", "remdm", "prophet")
PAPERS = ("llada", "fast-dllm", "localleap", "streaming", "d2f")


def cases_of(folder: str) -> list[dict]:
    return [json.loads(line) for line in (GOLDENS / folder / "cases.jsonl").open()]


CASES = {folder: cases_of(folder) for folder in "abc"}
RELATED = cases_of("related")
BASELINES = [case | {"checkpoint": case["model"], "answer": case["tokens"]} for case in cases_of("baselines")]


@functools.cache
def checkpoint(name: str):
    """A folder's, or, from what a case calls it in JSON, one of random numbers."""
    made = json.loads(name)
    if isinstance(made, dict):
        return checkpoints.seeded(**made)
    return checkpoints.plain() if made == "g" else load_model(GOLDENS / made, device="cpu")


def test_none_is_missing():
    """Would catch a truncated copy of the goldens, with which the tests below pass by checking nothing."""
    assert sum(map(len, CASES.values())) == 189
    assert {case["strategy"] for cases in CASES.values() for case in cases} == set(PAPERS)
    assert len(RELATED) == 131 and Counter(case["strategy"] for case in RELATED).most_common()[-1] == ("prism", 3)
    assert Counter(case["strategy"] for case in BASELINES) == dict.fromkeys(NEWER, 20)


@pytest.mark.parametrize("strategy", PAPERS)
@pytest.mark.parametrize("folder", "abc")
def test_tokens_and_forwards_equal_the_originals(folder, strategy):
    """Would catch any change of rule, view, position or schedule: the models are random, so every slip changes tokens."""
    model = checkpoint(f'"{folder}"')
    for case in CASES[folder]:
        if case["strategy"] == strategy:
            result = generate(model, case["prompt"], strategy, **case["settings"])
            assert result.tokens[0, : len(case["tokens"])].tolist() == case["tokens"], case["settings"]
            assert result.nfe == case["nfe"], case["settings"]


@pytest.mark.parametrize("strategy", sorted({case["strategy"] for case in RELATED + BASELINES}))
def test_tokens_and_forwards_equal_the_authors_own(strategy, tmp_path):
    """Would catch a rule, a cache or a phase of a related system that is not its authors'."""
    if strategy not in STRATEGIES:
        pytest.skip("its file is not there")
    for case in RELATED + BASELINES:
        if case["strategy"] == strategy:
            model, extra = checkpoint(json.dumps(case["checkpoint"])), {}
            if "filter" in (made := case.get("extra", {})):
                extra["filter"] = str(tmp_path / "filter.safetensors")
                save_filter(checkpoints.learned_filter(*made["filter"]), extra["filter"])
            if "frequencies" in made:
                extra["frequencies"] = str(tmp_path / "frequencies.json")
                shares = dict(enumerate(checkpoints.frequencies(*made["frequencies"]).tolist()))
                Path(extra["frequencies"]).write_text(json.dumps({"num_token": 1, "p_baseline_dict": shares}))
            if "guide" in made:
                extra["guide"] = checkpoints.guide_of(checkpoints.seeded(**case["checkpoint"]))
            result = generate(model, case["prompt"], strategy, **case["settings"], **extra)
            answer, eos = result.tokens[0, result.prompt_length :].tolist(), model.config.eos_token_id
            if case.get("upto_eos"):
                answer, case["answer"] = ((ids + [eos])[: (ids + [eos]).index(eos)] for ids in (answer, case["answer"]))
            assert answer == case["answer"], case["settings"]
            assert result.nfe == case["nfe"], case["settings"]
