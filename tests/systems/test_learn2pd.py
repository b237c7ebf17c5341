"""Learn2PD: what the filter is shown, what follows from it, and its file. How it is trained is in test_filter.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from conftest import MASK, random_filter, random_model, random_prompt
from dllm import decode, plan
from kernels import Scores
from lab.save import save_filter
from model import Pass
from shared import CACHES, LENGTHS, answers, committed, run, same, seeds
from strategies import Strategy, build, rank
from strategies.d2f import block_causal, pipeline
from strategies.fast_dllm import cached
from strategies.learn2pd import FILTER_PARTS, load_filter
from strategies.llada import full, serial

FILTER = random_filter(8)


def test_the_rule_is_two_layers_on_the_confidences_of_a_block(tmp_path):
    """Would catch layers that are swapped or transposed, a missing bias, and a written cell that is shown as anything but what the model
    says of it now."""
    weight = torch.zeros(8, 8)
    weight[2, 5] = 10.0  # cell 2 is accepted for what cell 5 shows
    file = tmp_path / "filter.safetensors"
    save_filter([torch.eye(8), torch.full((8,), -0.25), weight, torch.full((8,), -2.0)], file)
    rule = lambda tau: build("learn2pd", filter=str(file), tau=float(tau)).rule
    bias = lambda confidence: 1 / (1 + torch.exp(torch.tensor(2 - 10 * (confidence - 0.25))))
    odds = [0.5, 0.5, 0.5, 0.5, 0.5, 0.75, 0.5, 0.5]
    assert committed(rule(bias(0.75) - 1e-4), confidence=odds) == [2, 5]  # the latter is the surest
    assert committed(rule(bias(0.75) + 1e-4), confidence=odds) == [5]
    assert committed(rule(bias(0.75) - 1e-4), confidence=odds, masked=[2, 3]) == [2]  # cell 5 is written now
    assert committed(rule(bias(0.75) - 1e-4), confidence=odds, masked=[0, 2, 3]) == [0, 2]


@given(seeds)
def test_the_surest_is_always_written(seed):
    """Would catch a filter whose acceptances take the surest token's place."""
    for step in decode(random_model(seed), random_prompt(seed, 5), "learn2pd", filter=FILTER, tau=0.5, **LENGTHS):
        assert step.commit[rank(step.scores.doubt, step.candidates) == 0].all()


def test_the_surest_is_not_what_the_filter_accepts():
    """Negative control for the test above: on some of the models the filter alone would leave the surest, and write others."""
    rule, left = build("learn2pd", filter=FILTER, tau=0.5).rule, 0
    weight, bias, last, last_bias = load_filter(FILTER)
    for seed in range(8):
        for step in decode(random_model(seed), random_prompt(seed, 5), Strategy(rule, full, serial), **LENGTHS):
            final = ((step.scores.confidence @ weight.T + bias).relu() @ last.T + last_bias).sigmoid() > 0.5
            best = rank(step.scores.doubt, step.candidates) == 0
            left += bool((final & step.candidates).any() and not (final & best).any())
    assert left >= 3


@given(seeds)
def test_what_a_cache_has_not_computed_counts_as_sure(seed):
    """Would catch a filter that is shown the uniform scores of cells which a view left out: they are shown as what they hold."""
    for step in decode(
        random_model(seed), random_prompt(seed, 5), Strategy(build("learn2pd", filter=FILTER).rule, SKIPS, serial), **LENGTHS
    ):
        left_out = ~step.candidates if step.at.own is not None else torch.zeros_like(step.candidates)
        assert (step.scores.confidence[left_out] == 1).all()
        standing = step.x[:, step.window.start : step.window.end]
        assert step.scores.token[left_out].equal(standing[left_out])


def SKIPS(s, window):
    """A view that computes no written cell of the answer, but in a block's first forward."""
    if window.age == 0:
        return full(s, window)._replace(visible=slice(0, s.x.shape[1]))
    query = torch.arange(s.x.shape[1])
    own = (s.x[s.live] == s.mask_id) | (query < s.prompt_length)
    kept = own.any(0).nonzero()[:, 0]
    return Pass(kept, slice(0, s.x.shape[1]), own=own[:, kept])


@given(seeds, st.sampled_from(CACHES), st.sampled_from([1.0, 1.5]))
def test_a_tau_of_one_commits_one_token_a_forward(tmp_path_factory, seed, cache, tau):
    """Would catch a rule that accepts what is as sure as tau: a sigmoid is 1.0 in float32 long before it is in truth."""
    file = tmp_path_factory.getbasetemp() / "sure.safetensors"
    if not file.exists():
        save_filter([torch.eye(8), torch.zeros(8), torch.zeros(8, 8), torch.full((8,), 99.0)], file)
    vanilla = run(seed, "fast-dllm", threshold=None, cache=cache)
    for which in (str(file), FILTER):
        assert same(run(seed, "learn2pd", filter=which, tau=tau, cache=cache, eos="fill"), vanilla)


def test_a_filter_differs_from_a_threshold():
    """Negative control for the test above, and for a filter that is loaded and not asked."""
    runs = [run(seed, "learn2pd", filter=FILTER, tau=0.5, cache="none", eos="fill") for seed in range(8)]
    vanilla = [run(seed, "llada") for seed in range(8)]
    assert sum(a.nfe < b.nfe for a, b in zip(runs, vanilla)) >= 6
    assert sum(not a.tokens.equal(b.tokens) for a, b in zip(runs, vanilla)) >= 4
    others = [run(seed, "learn2pd", filter=random_filter(8, 1), tau=0.5, cache="none", eos="fill") for seed in range(8)]
    assert sum(a.nfe != b.nfe for a, b in zip(runs, others)) >= 3


@given(seeds)
def test_it_works_in_a_pipeline(seed):
    """Would catch a filter that is called for several blocks at once."""
    rule = build("learn2pd", filter=FILTER, tau=0.5).rule
    steps = list(decode(random_model(seed), random_prompt(seed, 5), Strategy(rule, block_causal(), pipeline(0.1, 0.95)), **LENGTHS))
    assert not (steps[-1].x == MASK).any()
    for step in steps:
        lines = [t.unflatten(1, (-1, 8)) for t in (step.scores.token, step.scores.doubt, step.candidates, step.commit)]
        for n in range(lines[0].shape[1]):
            *scores, candidates, commit = (line[:, n] for line in lines)
            assert commit.equal(rule(Scores(*scores), candidates, step.window) & candidates)


def test_answers_stop_at_the_block_with_eos():
    """Would catch a default other than the paper's end-of-text prediction comes down to."""
    stopped = run(3, "learn2pd", filter=FILTER, tau=0.5)
    assert answers(stopped) == answers(run(3, "learn2pd", filter=FILTER, tau=0.5, eos="stop"))


# --- its file


def test_a_filter_is_tied_to_its_block_length():
    """Would catch a filter that is cut or stretched."""
    assert run(0, "learn2pd", filter=FILTER, block_length=None).tokens.shape[1] > 0
    assert plan("learn2pd", {"filter": FILTER})[1].block_length == 8
    for length in (4, 24):
        with pytest.raises(ValueError, match=f"block_length is {length}, expected 8, which is what this strategy was made for"):
            run(0, "learn2pd", filter=FILTER, block_length=length)
    by_hand = Strategy(build("learn2pd", filter=FILTER).rule, cached("dual"), serial)  # by hand it is anyone's
    assert run(0, by_hand, block_length=8).nfe
    with pytest.raises(ValueError, match="block_length is 4, expected 8, which the filter is for"):
        run(0, by_hand, block_length=4)


def test_a_file_that_is_no_filter_is_refused(tmp_path):
    """Would catch a traceback, or a decode with half a filter."""
    good, bad = dict(zip(FILTER_PARTS, load_filter(FILTER))), str(tmp_path / "bad.safetensors")
    assert [tuple(part.shape) for part in good.values()] == [(8, 8), (8,), (8, 8), (8,)]
    broken = [
        {},
        {name: good[name] for name in FILTER_PARTS[:3]},
        good | {"more": torch.zeros(1)},
        good | {"out.weight": torch.zeros(8, 4)},
        good | {"hidden.weight": torch.zeros(8)},
        good | {"hidden.weight": torch.tensor(1.0)},
        good | {"out.bias": torch.full((8,), torch.nan)},
    ]
    for tensors in broken:
        save_file(tensors, bad)
        with pytest.raises(ValueError, match="filter .* does not hold just hidden.weight, hidden.bias|holds NaN or infinity"):
            build("learn2pd", filter=bad)
    (tmp_path / "bad.safetensors").write_bytes(b"{}")
    missing = "there is no filter nowhere: train one by python -m lab.train filter"
    for file, message in ((bad, "truncated or not a safetensors file"), (str(tmp_path), "there is no filter"), ("nowhere", missing)):
        with pytest.raises(ValueError, match=message):
            build("learn2pd", filter=file)
