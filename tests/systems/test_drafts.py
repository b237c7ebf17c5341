"""Speculation: the same tokens for any graph, rule, cache and temperature, in fewer forwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_prompt
from shared import CACHES, again, rules, run, seeds, views
from strategies import STRATEGIES, Strategy, build
from strategies.d2f import block_causal, pipeline
from strategies.drafts import Drafts, chain
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import quota, serial

NAMES = list(rules("hierarchy", "localleap", "conv", "saber", "editing", "learn2pd", "quota"))


def drafting(skip, depth: int) -> Strategy:
    return Strategy(quota, cached("dual"), serial, forward=Drafts(chain(depth), skip))


@given(seeds, st.sampled_from(NAMES), st.booleans(), st.sampled_from([0.0, 0.7]), st.sampled_from([0.0, 0.7]), st.data())
def test_any_graph_is_lossless_for_any_rule(seed, rule, credit, temperature, cfg_scale, data):
    """Would catch a rule that remembers and is asked twice, noise that is drawn out of turn, and rows that take each other's drafts."""
    node = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=3).map(tuple)
    graph = tuple(data.draw(st.lists(node, max_size=4)))
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    settings = {"temperature": temperature, "cfg_scale": cfg_scale, "steps": 12 if rule in ("quota", "conv") else None}
    plain, drafted = None, Drafts(graph)
    if credit and "credit" in STRATEGIES:  # whose logits remember, around those that were drafted
        around = type(build("credit").forward)
        plain, drafted = around(0.7, 0.2, 0.8), around(0.7, 0.2, 0.8, inside=drafted)
    mine = [Strategy(rules(rule)[rule], cached("dual"), serial, forward=forward) for forward in (plain, drafted)]
    one, other = (again(seed, strategy, *prompts, **settings) for strategy in mine)
    assert one.tokens.equal(other.tokens)
    assert all(a >= b for a, b in zip(one.forwards, other.forwards))


def test_a_draft_fills_the_surest_masks_with_their_likeliest_tokens():
    """Would catch a second choice that is the first, a written cell that is filled, and places that count from the wrong end."""
    logits = torch.tensor([[[0.0, 3.0, 1.0, 0.5], [9.0, 0.0, 0.0, 0.0], [4.0, 0.0, 1.0, 2.0]]])  # the third mask is the surer one
    graph = (((0, 0),), ((0, 1),), ((0, 0), (1, 2)), ((1, 0), (5, 0)), ((0, 99),))
    drafts = Drafts(graph).draft(logits, torch.tensor([[39, 7, 39]]), 39)
    assert drafts[0].tolist() == [[39, 7, 0], [39, 7, 3], [3, 7, 0], [1, 7, 39], [39, 7, 1]]


def test_drafts_are_often_right():
    """Negative control for the tests above: drafts that never match would be lossless, too."""
    saved = [run(seed, "fast-dllm", cache="dual", threshold=None).nfe - run(seed, drafting(None, 4)).nfe for seed in range(8)]
    assert sum(count >= 3 for count in saved) >= 4


@pytest.mark.skipif("sparse" not in STRATEGIES, reason="its file is not there")
@given(seeds, st.sampled_from([0.0, 0.7]))
def test_drafts_over_sparse_are_lossless(seed, cfg_scale):
    """Would catch drafts of a forward that evicts, whose keys would be those of a copy, and drafts that see another row's slots."""
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    view = views("sparse")["sparse"]
    plain, drafted = (
        run(seed, Strategy(quota, view, serial, forward=forward), *prompts, cfg_scale=cfg_scale) for forward in (None, Drafts(chain(4)))
    )
    assert plain.tokens.equal(drafted.tokens) and all(a >= b for a, b in zip(plain.forwards, drafted.forwards))


@given(seeds, st.sampled_from([(0,), (1,), (0, 2, 3), (0, 1, 2, 3)]), st.sampled_from(CACHES), st.sampled_from([None, 0.6]))
def test_drafts_by_any_layers_are_lossless(seed, skip, cache, threshold):
    """Would catch a draft that is taken unverified, one that writes to the cache, and a last layer whose rows are not cut out."""
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    plain = run(seed, "fast-dllm", *prompts, layers=4, cache=cache, threshold=threshold)
    mine = Strategy(threshold_rule(threshold), cached(cache), serial, forward=Drafts(chain(4), skip))
    assert run(seed, mine, *prompts, layers=4).tokens.equal(plain.tokens)


def test_skipping_no_layer_is_freedave_with_a_draft_forward_too_many():
    """Would catch draft forwards, or their rows, that are not counted: those of the whole network are right, one commit a forward."""
    for seed in range(5):
        result, plain = run(seed, drafting((), 2)), run(seed, "fast-dllm", cache="dual", threshold=None)
        assert result.tokens.equal(plain.tokens) and result.nfe == 3 * (1 + 2 * 4)  # a block: 1, then a draft and a check for two commits
        assert result.rows == 3 * (plain.rows // 3 - 7 * 8 + 4 * (8 + 2 * 8)) and result.forwards == [result.nfe]


def test_fewer_layers_draft_worse():
    """Negative control for the two tests above: were the layers not left out, any set would save as many forwards as none."""
    runs = {skip: [run(seed, drafting(skip, 4), layers=4) for seed in range(4)] for skip in ((), (1,), (0, 1, 2))}
    assert all(result.forwards == [result.nfe] for results in runs.values() for result in results)  # those that draft are counted
    nfe = {skip: sum(result.nfe for result in results) for skip, results in runs.items()}
    assert nfe[()] < nfe[(1,)] < nfe[(0, 1, 2)]


def test_what_cannot_be_combined_is_refused():
    """Would catch a combination that runs and is wrong."""
    with pytest.raises(ValueError, match="a draft needs one block at a time"):
        Strategy(threshold_rule(0.5), block_causal(), pipeline(0.1, 0.95), forward=Drafts(chain(4)))
    for name, view in views("dkv", "dllm-cache").items():
        if name in ("dkv", "dllm-cache"):
            with pytest.raises(ValueError, match="drafts need a cache whose slots in the block are computed every time"):
                Strategy(threshold_rule(0.5), view, serial, forward=Drafts(chain(4)))
