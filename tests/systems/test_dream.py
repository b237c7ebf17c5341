"""Dream's own sampler: how many tokens a step writes, which, and from which of the vocabulary. On models with a shift: test_shift.py."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
from dllm import decode
from kernels import score
from shared import CACHES, changed, refused, run, same, seeds
from strategies import Strategy, build
from strategies.dream import truncated
from strategies.fast_dllm import cached
from strategies.llada import ORDERS, Timesteps, full, serial


@pytest.mark.parametrize("eps", [1e-3, 0.2])
@pytest.mark.parametrize("G, N", [(8, 8), (16, 5), (16, 16), (16, 40), (8, 1)])
def test_the_quota_is_that_of_the_formula(G, N, eps):
    """Would catch a share that is rounded to the nearest, steps that are counted from another one, and forwards that write nothing."""
    masks, counts = G, []
    for i in range(N):
        t, s = (1 - (1 - eps) * j / N for j in (i, i + 1))
        n = int(masks * (1 - s / t)) if i < N - 1 else masks  # the shares here are never whole numbers
        masks, counts = masks - n, counts + [n] * (n > 0)
    steps = [int(step.commit.sum()) for step in decode(random_model(0), [1, 2], "dream", gen_length=G, steps=N, eps=eps)]
    assert steps == counts


def test_as_many_steps_as_tokens_are_one_forward_less():
    """Would catch an end of time at 0: with 0.001 the first step writes nothing, and the last writes two."""
    counts = lambda **own: [int(step.commit.sum()) for step in decode(random_model(0), [1, 2], "dream", gen_length=16, **own)]
    assert counts() == [1] * 14 + [2] and counts(eps=1.0) == [16]


def test_each_row_steps_on_its_own():
    """Would catch a step that is skipped for one row because another row has nothing to write in it."""
    rows = [random_prompt(1, 6), random_prompt(2, 9)]
    templates = [[MASK] * 8, [3, MASK, 4, MASK, MASK, 5, 6, 7]]
    ask = lambda prompt, template: list(decode(random_model(0), prompt, "dream", template, steps=4))[-1]
    both = ask(rows, templates)
    for row, (prompt, template) in enumerate(zip(rows, templates)):
        assert ask(prompt, template).x[0, -8:].equal(both.x[row, -8:])


@given(seeds, st.sampled_from([("entropy", "entropy"), ("maskgit_plus", "low_confidence"), ("topk_margin", "margin")]))
def test_the_surest_are_those_of_the_order(seed, names):
    """Would catch names that are mixed up."""
    alg, order = names
    by_hand = Strategy(Timesteps(), full, serial, order=ORDERS[order], block_length=None)
    assert same(run(seed, "dream", alg=alg, steps=9), run(seed, by_hand, steps=9))


def test_what_is_asked_for_changes_something():
    """Negative controls: orders, times, likeliest tokens and caches each change some answers."""
    plain = {"steps": 9, "block_length": 24, "alg": "maskgit_plus"}
    for own in (
        {"alg": "entropy"},
        {"alg": "topk_margin"},
        {"eps": 0.5},
        {"top_k": 2},
        {"top_p": 0.6},
        {"cache": "dual", "block_length": 8},
    ):
        assert changed("dream", plain, "dream", plain | own) >= 3, own


@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 9), st.sampled_from([0.0, 0.5, 2.0]))
def test_the_likeliest_are_chosen_as_in_a_loop(seed, top_p, top_k, temperature):
    """Would catch the token that passes top_p left out, one more taken, top_k before top_p, and probabilities of untempered logits."""
    logits = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(seed)) * 2
    s = SimpleNamespace(forward=lambda *_: logits.clone(), forbid=lambda given: None, settings=SimpleNamespace(temperature=temperature))
    kept = truncated(top_p, top_k)(s, None, None).isfinite()
    for line, found in zip(logits[0], kept[0]):
        probability, mass, left = (line / (temperature or 1)).softmax(-1), 0.0, []
        for token in line.argsort(descending=True).tolist():
            if mass > top_p:
                break
            left, mass = [*left, token], mass + float(probability[token])
        if abs(mass - top_p) > 1e-5:  # else rounding decides
            assert found.nonzero()[:, 0].tolist() == sorted(left[:top_k])


def test_confidence_is_that_of_what_is_left():
    """Would catch scores of the whole vocabulary: of one token the confidence is 1, and its entropy 0."""
    for step in decode(random_model(0), [1, 2], "dream", top_k=1, gen_length=8):
        assert (step.scores.confidence == 1).all() and (step.scores.entropy == 0).all()
    scores = score(torch.tensor([[2.0, 1.0, -torch.inf, 0.0]]))
    assert torch.stack([scores.doubt, scores.margin, scores.entropy]).isfinite().all()  # though a token is ruled out


@given(seeds, st.sampled_from(CACHES))
def test_its_caches_are_fast_dllms(seed, cache):
    """Would catch a cache that the sampler does not see."""
    by_hand = Strategy(Timesteps(), cached(cache), serial, order=ORDERS["entropy"])
    assert same(run(seed, "dream", cache=cache, steps=9), run(seed, by_hand, steps=9))


def test_what_makes_no_sense_is_refused():
    """Would catch a mistake that surfaces later, or as something else."""
    model = random_model(0)
    refused(model, "dream", "alg is 'origin', expected one of entropy, maskgit_plus, topk_margin", alg="origin")
    refused(model, "dream", "eps is 1.5, expected between 0 and 1", eps=1.5)
    refused(model, "dream", "top_p is -0.1, expected between 0 and 1", top_p=-0.1)
    refused(model, "dream", "top_k is 0, expected at least 1", top_k=0)
    refused(model, "dream", "steps 10 do not divide evenly among 3 blocks", steps=10)
    assert build("dream").block_length is None and build("dream").forward is None
