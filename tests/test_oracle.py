"""Exact denoisers: their marginals against counting by hand, and decoding on them against theory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dllm
from lab.oracle import LANGUAGES, Oracle
from model import Pass
from strategies import STRATEGIES

NAMES = ["alternate-6", "permutation-4", "echo-5", "bits-4", "brackets-6"]


def decode(oracle: Oracle, strategy: str, runs: int = 1, **settings) -> dllm.Result:
    length = oracle.strings.shape[1]
    return dllm.generate(oracle, [oracle.encode_chat([])] * runs, strategy, gen_length=length, block_length=length, **settings)


def validity(oracle: Oracle, result: dllm.Result) -> float:
    return oracle.contains(result.tokens[:, 1:]).float().mean().item()


def test_sizes_of_the_languages():
    """Would catch a language that is not enumerated in full: Catalan numbers, factorials, powers."""
    sizes = {name: len(Oracle(name).strings) for name in ("alternate-6", "permutation-5", "echo-4", "bits-5", "brackets-8")}
    assert sizes == {"alternate-6": 2, "permutation-5": 120, "echo-4": 4, "bits-5": 32, "brackets-8": 14}


@given(st.sampled_from(NAMES), st.integers(0, 999))
def test_marginals_equal_a_count_over_the_strings(name, seed):
    """Would catch a cell that is conditioned on itself, on the wrong neighbour, or not at all."""
    oracle, generator = Oracle(name), torch.Generator().manual_seed(seed)
    whole = oracle.strings[torch.randint(len(oracle.strings), (1,), generator=generator)[0]]
    known = torch.rand(len(whole), generator=generator) < 0.4
    cells = torch.where(known, whole, oracle.config.mask_token_id)
    logits = oracle(torch.cat((torch.tensor(oracle.encode_chat([])), cells))[None])[0, 1:]
    agreeing = [s for s in oracle.strings.tolist() if all(not k or a == b for k, a, b in zip(known, s, whole.tolist()))]
    for i in range(len(whole)):
        for v in range(oracle.config.vocab_size):
            share = sum(s[i] == v for s in agreeing) / len(agreeing)
            assert logits[i, v].exp().item() == pytest.approx(share, abs=1e-6)


def test_a_stale_slot_says_what_it_said():
    """Would catch a cache that sees what was written since: to a network, stale keys and values hide it, too."""
    oracle = Oracle("alternate-4")
    mask, a, b = oracle.config.mask_token_id, *range(2)
    cache = oracle.new_cache(1, 5)
    oracle(torch.tensor([[2, mask, mask, mask, mask]]), cache=cache)
    seen = oracle(torch.tensor([[b, mask]]), Pass(slice(2, 4), slice(0, 5)), cache)[0]
    assert seen[1].exp()[[a, b]].tolist() == [1, 0]
    unseen = oracle(torch.tensor([[mask, mask]]), Pass(slice(3, 5), slice(3, 5)), cache)[0]
    assert unseen[0].exp()[[a, b]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name, expected", [("alternate-6", 2 / 2**6), ("permutation-6", 720 / 6**6), ("echo-6", 1 / 4), ("bits-6", 1.0)])
def test_theory_of_one_step(name, expected):
    """Would catch a wrong formula: these are worked out by hand."""
    assert Oracle(name).one_step_validity() == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_one_forward_for_all_cells_is_as_often_right_as_theory_says(name):
    """Would catch sampling that is not independent, or not from the marginals; 4 standard deviations of 2,000 runs."""
    oracle, runs = Oracle(name), 2000
    p = oracle.one_step_validity()
    measured = validity(oracle, decode(oracle, "llada", runs, steps=1, temperature=1.0))
    assert abs(measured - p) <= 4 * math.sqrt(p * (1 - p) / runs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy, settings", [("llada", {}), ("fast-dllm", {"threshold": 0.99}), ("fast-dllm", {"factor": 0.99})])
def test_careful_decoding_never_leaves_the_language(name, strategy, settings):
    """Would catch a rule that commits what is not sure; and, since an oracle errs never, a decoder that reads the wrong slots."""
    oracle = Oracle(name)
    assert validity(oracle, decode(oracle, strategy, 200, temperature=1.0, **settings)) == 1.0


def test_every_string_comes_up_as_often():
    """Would catch a decoder whose order or sampling prefers some strings: one cell at a time is exact ancestral sampling; chi-squared, 99.99 %."""
    oracle, runs = Oracle("permutation-3"), 3000
    tokens = decode(oracle, "llada", runs, temperature=1.0, remasking="random").tokens[:, 1:]
    counts = torch.tensor([(tokens == string).all(-1).sum() for string in oracle.strings])
    assert ((counts - runs / 6) ** 2 / (runs / 6)).sum() < 25.7


def test_careless_decoding_leaves_the_language():
    """Negative control for the tests above: two halves of a permutation, each drawn at once, collide."""
    oracle = Oracle("permutation-6")
    assert validity(oracle, decode(oracle, "llada", 300, steps=2, temperature=1.0)) < 0.5


@pytest.mark.parametrize("name", ["permutation", "permutation-9", "brackets-3", "bits-1", "chess-4", "permutation--2"])
def test_an_unknown_language_is_refused(name):
    """Would catch an enumeration that never ends, and an empty language."""
    with pytest.raises(ValueError, match="no oracle for .*: choose one of alternate-2 to -12, permutation-2 to -7"):
        Oracle(name)


def test_every_language_is_among_those_tested():
    """Would catch a new language that the properties never see."""
    assert {name.split("-")[0] for name in NAMES} == set(LANGUAGES)


@pytest.mark.parametrize("strategy", [name for name in ("sparse", "dllm-cache", "d3llm", "dkv") if name in STRATEGIES])
def test_an_oracle_can_be_decoded_with_any_cache(strategy):
    """Would catch an oracle that lacks a part of the network's interface; its block is recomputed as a whole, so that it stays right."""
    oracle = Oracle("brackets-8")
    settings = {"gen_interval_steps": 1} if strategy == "dllm-cache" else {}
    result = decode(oracle, strategy, 9, temperature=1.0, **settings)
    assert oracle.contains(result.tokens[:, 1:]).all() or strategy == "d3llm"  # which writes several at once
