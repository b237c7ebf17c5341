"""Iteration smoothing: masks that say what was expected in their place."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
from dllm import decode, generate, prepare, stream
from kernels import Scores
from lab.oracle import Oracle
from shared import CACHES, LENGTHS, answers, changed, refused, rules, run, same, seeds, views
from strategies import Strategy, build
from strategies.d2f import block_causal, pipeline
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import quota, serial


def softened(weight: float, growth: float, max_weight: float):
    return build("smoothing", weight=weight, growth=growth, max_weight=max_weight).forward


@given(seeds, st.sampled_from(CACHES), st.sampled_from([None, 0.5]))
def test_a_weight_of_zero_is_the_plain_decoder(seed, cache, threshold):
    """Would catch softened masks that change more than the weight says, to the last bit, and a threshold that sinks unasked."""
    plain = run(seed, "fast-dllm", threshold=threshold, cache=cache)
    rule = quota if threshold is None else threshold_rule(threshold)
    assert same(run(seed, Strategy(rule, cached(cache), serial, forward=softened(0.0, 0.0, 0.0))), plain)
    if threshold:
        idle = {"threshold": threshold, "weight": 0.0, "fall": None, "cache": cache}
        assert same(plain, run(seed, "smoothing", growth=0.0, **idle), run(seed, "smoothing", max_weight=0.0, **idle))


@given(seeds)
def test_it_adds_the_expected_embedding_of_the_step_before(seed):
    """Would catch a weight of another step, written cells that are softened, and masks behind the block that are not: dInfer softens
    every mask it has computed, and so a block begins with what the one before expected of it."""
    model = random_model(seed)
    table, softened = model.wte.weight, {"weight": 0.15, "growth": 0.02, "max_weight": 0.2, "fall": 0.2, "threshold": 0.5, "cache": "none"}
    s = prepare(model, random_prompt(seed, 5), "smoothing", LENGTHS | softened)
    added, canvas = torch.zeros(1, 29, 32), s.x.clone()  # each forward from what the one before has left: errors do not add up
    for t, step in enumerate(stream(s)):
        logits = model(canvas, added=added * (canvas == MASK)[..., None])
        logits[..., MASK] = -torch.inf
        torch.testing.assert_close(step.logits, logits[:, step.window.start : step.window.end], rtol=1e-3, atol=1e-3)
        sure, passing = step.scores.confidence[step.candidates], max(0.5, 1 - 0.2 * t)
        assert step.commit[step.candidates].equal(sure >= passing) or (sure < passing).all() or (sure - passing).abs().min() < 1e-5
        expected = min(0.15 + 0.02 * t, 0.2) * logits.softmax(-1) @ table * (canvas == MASK)[..., None]
        added, canvas = s.strategy.forward.soft * (canvas == MASK)[..., None], step.x.clone()
        torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-3)


def test_what_is_as_sure_as_the_surest_is_written_with_it():
    """Would catch a first forward that writes one token of several that are alike: its threshold is 1, which none reaches; dInfer
    takes all within 1e-5 of the surest."""
    rule, window = build("smoothing", threshold=0.5, fall=0.5).rule, lambda t: SimpleNamespace(forwards=torch.tensor([t]))
    confidence = torch.tensor([[0.999, 0.999 - 5e-6, 0.999 - 5e-5, 0.6]])
    scores = Scores(torch.zeros(1, 4), 1 / confidence - 1)
    masked = torch.tensor([[True] * 4])
    assert rule(scores, masked, window(0)).tolist() == [[True, True, False, False]]
    assert rule(scores, masked & (confidence < 0.9), window(0)).tolist()[0][3]  # of the masks, not of what is written
    assert rule(scores, masked, window(1)).all()


@given(
    seeds, st.sampled_from(list(rules("localleap", "hierarchy", "saber", "editing", "quota"))), st.sampled_from([0.0, 0.7]), st.data()
)  # fmt: skip
def test_it_works_with_any_rule_cache_and_schedule(seed, name, cfg_scale, data):
    """Would catch rows of a batch whose masks are softened by one another, or by the forwards in which they waited."""
    seen = views("dkv", "streaming")
    if name in ("saber", "editing"):
        seen.pop("dkv", None)
    view, schedule = seen[data.draw(st.sampled_from(list(seen)))], serial
    if name == "localleap" and data.draw(st.booleans()):
        view, schedule = block_causal(), pipeline(0.1, 0.5)
    mine = Strategy(rules(name)[name], view, schedule, forward=softened(0.15, 0.02, 0.3))
    prompts = [random_prompt(seed + i, length) for i, length in enumerate((9, 3, 6))]
    # in float64: what a forward puts out goes into the next, and so do its rounding errors
    decoded = partial(generate, copy.deepcopy(random_model(seed)).double(), strategy=mine, cfg_scale=cfg_scale, **LENGTHS)
    together = answers(decoded(prompts))
    assert together == [answers(decoded(prompt))[0] for prompt in prompts]
    assert MASK not in sum(together, [])


@given(seeds)
def test_its_threshold_sinks_for_each_row_of_a_pipeline(seed):
    """Would catch a threshold of one row that is compared with the blocks of another."""
    mine = Strategy(build("smoothing", threshold=0.3, fall=0.1).rule, block_causal(), pipeline(0.1, 0.5))
    prompts = [random_prompt(seed + i, length) for i, length in enumerate((9, 3, 6))]
    assert answers(run(seed, mine, *prompts)) == [answers(run(seed, mine, prompt))[0] for prompt in prompts]


def test_it_differs_from_a_threshold():
    """Negative controls for the first test: what softens, and what sinks."""
    plain = {"cache": "none", "threshold": 0.5}
    assert changed("fast-dllm", plain, "smoothing", plain | {"fall": None}) >= 3
    assert changed("fast-dllm", plain, "smoothing", plain | {"weight": 0.0, "growth": 0.0}) >= 1


def test_what_makes_no_sense_is_refused():
    """Would catch a model without embeddings, which fails later, and weights that contradict each other."""
    refused(random_model(0), "smoothing", "weight is 0.4, expected at most max_weight=0.3", weight=0.4)
    oracle = Oracle("bits-4")
    with pytest.raises(ValueError, match="softened masks are mixtures of embeddings, and this model has none"):
        decode(oracle, oracle.encode_chat([]), "smoothing", gen_length=4, block_length=4)
