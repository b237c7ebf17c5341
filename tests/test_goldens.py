"""Equality with the original projects' rules, and with their authors' own code: tokens and forwards (tests/goldens/README.md)."""

import functools
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm import generate
from lab.save import save_filter
from load_weights import load_model
from strategies import STRATEGIES, Strategy, build, rank
from strategies.llada import full, serial

GOLDENS = Path(__file__).parent / "goldens"
sys.path.insert(0, str(GOLDENS / "related"))
import checkpoints  # noqa: E402

PAPERS = ("llada", "fast-dllm", "localleap", "streaming", "d2f")


def cases_of(folder: str) -> list[dict]:
    return [json.loads(line) for line in (GOLDENS / folder / "cases.jsonl").open()]


CASES = {folder: cases_of(folder) for folder in "abc"}
RELATED = cases_of("related")
DREAM = {folder: cases_of(f"dream/{folder}") for folder in "ab"}
SOURCES = {  # what tests/goldens/dream calls whose code ran
    "dream": "Dream-org/Dream-v0-Instruct-7B generation_utils.py (the copy in zhijie-group/Discrete-Diffusion-Forcing@771f745)",
    "fast-dllm": "NVlabs/Fast-dLLM@24cc59e dream/, on Dream",
    "streaming": "xiaoshideta/Streaming-dLLM@c4320c2 dream/, on Dream",
    "d2f": "zhijie-group/Discrete-Diffusion-Forcing@771f745, on Dream",
    "dawn": "lizhuo-luo/DAWN@ab42898 dream/, on Dream (its ports of others' rules)",
}


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
    assert [len(cases) for cases in DREAM.values()] == [46, 46] and {case["source"] for case in DREAM["a"]} == set(SOURCES)
    assert len(RELATED) == 131 and Counter(case["strategy"] for case in RELATED).most_common()[-1] == ("prism", 3)


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


@pytest.mark.parametrize("strategy", sorted({case["strategy"] for case in RELATED}))
def test_tokens_and_forwards_equal_the_authors_own(strategy, tmp_path):
    """Would catch a rule, a cache or a phase of a related system that is not its authors'."""
    if strategy not in STRATEGIES:
        pytest.skip("its file is not there")
    for case in RELATED:
        if case["strategy"] == strategy:
            model, extra = checkpoint(json.dumps(case["checkpoint"])), {}
            if "filter" in (made := case.get("extra", {})):
                extra["filter"] = str(tmp_path / "filter.safetensors")
                save_filter(checkpoints.learned_filter(*made["filter"]), extra["filter"])
            if "guide" in made:
                extra["guide"] = checkpoints.guide_of(checkpoints.seeded(**case["checkpoint"]))
            result = generate(model, case["prompt"], strategy, **case["settings"], **extra)
            answer, eos = result.tokens[0, result.prompt_length :].tolist(), model.config.eos_token_id
            if case.get("upto_eos"):
                answer, case["answer"] = ((ids + [eos])[: (ids + [eos]).index(eos)] for ids in (answer, case["answer"]))
            assert answer == case["answer"], case["settings"]
            assert result.nfe == case["nfe"], case["settings"]


# --- Dream, whose logits are shifted by one


class Budget:
    """Fast-dLLM's mode without a cache, on Dream: each forward may write a share of the answer, and what those before it were refused."""

    def __init__(self, share: int, steps: int, threshold: float):
        self.share, self.steps, self.threshold = share, steps, threshold

    def __call__(self, scores, candidates, window):
        left = 0 if window.age == 0 else self.left
        place = rank(scores.doubt, candidates)
        left += self.share * (window.age < self.steps)
        chosen = candidates & (place < left) & ((scores.confidence >= self.threshold) | (place == 0))
        self.left = left - int(chosen.sum())
        return chosen


def dreamt(folder: str, case: dict, **changed):
    """A case decoded: by its strategy, or, for the budget, which is none of ours, by a rule that is put together here."""
    model, settings = checkpoint(f'"dream/{folder}"'), case["settings"] | changed
    if case["strategy"] == "fast-dllm-budget":
        G, steps = settings["gen_length"], settings["steps"]
        strategy = Strategy(Budget(G // steps, steps, settings["threshold"]), full, serial, block_length=None)
        return generate(model, case["prompt"], strategy, gen_length=G)
    return generate(model, case["prompt"], case["strategy"], **settings)


def of_useful(written: list[int]) -> list[int]:
    """Numbers of forwards, counted without those that wrote nothing."""
    useful = sorted(set(written) - {0})
    return [useful.index(number) + 1 if number else 0 for number in written]


@pytest.mark.parametrize("strategy", sorted({case["strategy"] for case in DREAM["a"]}))
@pytest.mark.parametrize("folder", "ab")
def test_tokens_forwards_and_order_equal_the_authors_on_dream(folder, strategy):
    """Would catch a row that predicts its neighbour's token, a first cell of a block that is written with others, and a step that is counted
    though it writes nothing."""
    if strategy not in {*STRATEGIES, "fast-dllm-budget"}:
        pytest.skip("its file is not there")
    for case in DREAM[folder]:
        if case["strategy"] == strategy:
            result, end = dreamt(folder, case), len(case["tokens"])
            assert result.tokens[0, :end].tolist() == case["tokens"], case["settings"]
            assert result.nfe == case["useful"], case["settings"]
            assert result.written[0, result.prompt_length : end].tolist() == of_useful(case["written"]), case["settings"]


@pytest.mark.parametrize("folder", "ab")
def test_logits_equal_the_authors_on_dream(folder):
    """Would catch a bias that is left out or at another place, another base of RoPE, another epsilon, and a name that is mixed up."""
    model, files = checkpoint(f'"dream/{folder}"'), load_file(GOLDENS / "dream" / folder / "logits.safetensors")
    for number in range(5):
        with torch.inference_mode():
            logits = model(files[f"{number}.ids"][None])[0]
        torch.testing.assert_close(logits, files[f"{number}.logits"], rtol=0, atol=5e-5)


def test_these_equalities_need_the_shift():
    """Negative control: with rows in their own places, other tokens come out of every case."""
    model = checkpoint('"dream/a"')
    unshifted = type(model)(type(model.config)(**vars(model.config) | {"shift": 0})).eval()
    unshifted.load_state_dict(model.state_dict())
    for case in [case for case in DREAM["a"] if case["strategy"] in PAPERS]:
        result = generate(unshifted, case["prompt"], case["strategy"], **case["settings"])
        assert result.tokens[0, : len(case["tokens"])].tolist() != case["tokens"]


def test_fast_dllms_quota_is_dreams_sampler_with_a_cache():
    """Would catch LLaDA's quota on a model with a shift, and an order that is not the authors', who take entropy whatever they are asked."""
    if "dream" not in STRATEGIES:
        pytest.skip("its file is not there")
    cases = [case for case in DREAM["a"] if case["strategy"] == "fast-dllm" and case["settings"]["threshold"] is None]
    assert len(cases) == 5 and build("fast-dllm", threshold=None).shifted
    for case in cases:
        own = {name: value for name, value in case["settings"].items() if name != "threshold"}
        assert generate(checkpoint('"dream/a"'), case["prompt"], "dream", **own).tokens[0].tolist() == case["tokens"]
