"""Models whose logits predict the token after theirs, as Dream's: every strategy decodes them as it does others, or says that it does not."""

import dataclasses
import functools
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiled import Compiled
from conftest import EOS, MASK, random_model, random_prompt
from dllm import decode, generate
from model import LLaDA, Pass
from shared import CASES, GREEDY, GUIDE, LENGTHS, name_of, refused, seeds
from strategies import STRATEGIES, Strategy, Window, build, has, options, scored
from strategies.d2f import block_causal, pipeline
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import Timesteps, full, quota, serial

DREAM = {"qkv_bias": True, "shift": 1}
MADE_FOR = {"llada", "fast-dllm", "localleap", "streaming", "d2f", "dream", "ar", "hierarchy", "conv", "learn2pd"}
REFUSING = {"saber", "editing", "credit", "smoothing", "dinfer", "dkv", "sparse", "dllm-cache", "d3llm", "dllm-var"}
REFUSING |= {"freedave", "spiffy", "swift", "apd", "guided", "prism"}


def refuses(case) -> bool:
    """Of others, a rule alone goes with every model: it sees cells. What is tested below is tested of them all."""
    with suppress(ValueError):
        build(case[0], **{name: value for name, value in case[1].items() if name in options(STRATEGIES[case[0]])}).made_for(1)
        return False
    return True


SHIFTED = [case for case in CASES if not refuses(case)]
SHIFTED += [("fast-dllm", {"cache": cache, "threshold": None, "steps": steps}) for cache in ("none", "prefix", "dual") for steps in (3, 24)]
every = pytest.mark.parametrize("case", SHIFTED, ids=map(name_of, SHIFTED))
PROMPTS = tuple(random_prompt(number, 3 + 2 * number) for number in range(4))
STALE = ("prefix", "dual", "frozen")  # inside a block these do not compute the slot before it
NEXT = {"prefix_look": 1, "after_look": 0}


@functools.cache
def dream(seed: int = 0, layers: int = 2) -> LLaDA:
    return random_model(seed, layers, 2, **DREAM)


def run(seed: int, strategy, *prompts, layers: int = 2, **settings):
    return generate(dream(seed, layers), prompts or [random_prompt(seed, 5 + seed % 7)], strategy, **LENGTHS | GREEDY | settings)


# --- what every strategy promises


def test_a_token_is_predicted_by_the_row_of_its_left_neighbour():
    """Would catch a row in its own place, or one that is shifted twice: of every cell, against a forward over the whole canvas."""
    for name in ("llada", "fast-dllm", "localleap", "dream"):
        x = torch.tensor([random_prompt(0, 5) + [MASK] * 24])
        own = {"cache": "none"} if name != "llada" else {}
        for step in decode(dream(), random_prompt(0, 5), name, **LENGTHS | own):
            logits = dream()(x)
            logits[..., MASK] = -torch.inf
            rows = logits[:, step.window.start - 1 : step.window.end - 1]
            torch.testing.assert_close(step.logits, rows, rtol=1e-4, atol=1e-4)
            x = step.x.clone()
            assert x[0, step.window.start : step.window.end][step.commit[0]].equal(rows.argmax(-1)[0][step.commit[0]])


@every
def test_a_row_of_a_batch_is_the_row_alone(case):
    """Would catch the first cell of a padded row that is predicted by the padding, and steps of one row that go by another's."""
    name, settings = case
    together = run(0, name, *PROMPTS, **settings)
    for row, prompt in enumerate(PROMPTS):
        alone = run(0, name, prompt, **settings)
        assert together.tokens[row, together.prompt_length :].equal(alone.tokens[0, len(prompt) :])
        assert together.forwards[row] == alone.nfe
    assert MASK not in together.tokens


@every
def test_the_compiled_step_writes_the_same_tokens(case):
    """Would catch padding that a shifted row falls into, and rows that only a slice can name."""
    name, settings = case
    model = random_model(1, 2, 2, **DREAM)
    model.fast = Compiled(model, compile=lambda function, **options: function)
    eager, fast = (generate(model, PROMPTS, name, compile=way, **LENGTHS | GREEDY | settings) for way in (False, True))
    assert fast.tokens.equal(eager.tokens) and fast.written.equal(eager.written) and not model.fast.broken


@every
def test_holes_are_filled_and_what_stands_is_kept(case):
    """Would catch a block whose first cell is given, of which a refresh would write nothing, and a cell that waits for one that is no mask."""
    (name, settings), eos = case, ("fill", "stop", "suppress", "defer")[SHIFTED.index(case) % 4]
    answer = [3, MASK, MASK, 5, MASK, 7, 8, 9] + [4] * 8 + [MASK, 1, 2, MASK, MASK, MASK, EOS, MASK]
    templates = [answer, [MASK] * 23 + [2]]
    own = (
        {key: value for key, value in settings.items() if key != "steps"} | {"block_length": 1 if name == "ar" else 8, "eos": eos} | GREEDY
    )
    result = generate(dream(2), PROMPTS[:2], name, templates, **own)
    for row, template in zip(result.tokens[:, result.prompt_length :].tolist(), templates):
        assert all(given in (MASK, told) for given, told in zip(template, row)) and MASK not in row
    for row, template in enumerate(templates):
        alone = generate(dream(2), PROMPTS[row], name, template, **own)
        assert alone.tokens[0, alone.prompt_length :].equal(result.tokens[row, result.prompt_length :])


# --- caches


def by_hand(model: LLaDA, prompt: list[int], threshold: float, G: int, L: int) -> tuple[list[int], int]:
    """Fast-dLLM on Dream where nothing is stale: all is computed every time; a block's first forward writes its first cell alone."""
    x, P, forwards = [*prompt, *[MASK] * G], len(prompt), 0
    for start in range(P, P + G, L):
        for age in range(L):
            masks = [i for i in range(start, start + L) if x[i] == MASK]
            if not masks:
                break
            logits = model(torch.tensor([x]))[0]
            logits[:, MASK] = -torch.inf
            probability, token = logits.double().softmax(-1).max(-1)
            sure = [i for i in masks if probability[i - 1] >= threshold] or [max(masks, key=lambda i: probability[i - 1])]
            for i in [start] if age == 0 else sure:
                x[i] = int(token[i - 1])
            forwards += 1
    return x[P:], forwards


@given(seeds, st.sampled_from(STALE), st.sampled_from([0.3, 0.6, 0.9]))
def test_with_one_layer_stale_caches_are_the_loop_by_hand(seed, cache, threshold):
    """Would catch a first cell that is written by its own row, or with others; one layer's keys and values depend on their tokens alone, and
    what is stale within a block is but a mask that no row of a full block asks for."""
    result = run(seed, "fast-dllm", layers=1, cache=cache, threshold=threshold)
    answer, forwards = by_hand(dream(seed, 1), random_prompt(seed, 5 + seed % 7), threshold, 24, 8)
    assert result.tokens[0, result.prompt_length :].tolist() == answer and result.nfe == forwards


@given(seeds, st.sampled_from([0.3, 0.6]))
def test_the_row_before_the_block_may_be_computed_instead(seed, threshold):
    """Would catch a first cell that waits although its row is there: with one layer the vicinity of one slot is no cache at all."""
    near, none = (run(seed, "fast-dllm", layers=1, threshold=threshold, cache=c, **own) for c, own in (("vicinity", NEXT), ("none", {})))
    assert near.tokens.equal(none.tokens) and near.nfe == none.nfe


def test_that_row_is_worth_its_cost():
    """Negative control for the two tests above: the two ways differ, in forwards and in tokens."""
    ways = [[run(seed, "fast-dllm", threshold=0.3, cache=c, **own) for seed in range(6)] for c, own in (("dual", {}), ("vicinity", NEXT))]
    assert sum(r.nfe for r in ways[1]) < sum(r.nfe for r in ways[0])
    assert sum(not a.tokens.equal(b.tokens) for a, b in zip(*ways)) >= 3


@given(seeds, st.sampled_from([0.3, 0.6, 0.9]), st.sampled_from([0.1, 0.5]))
def test_an_exact_cache_is_exact(seed, skip, add):
    """Would catch a block of which all before it is cached, and that has no row for its first cell."""
    own = {"skip_threshold": skip, "block_add_threshold": add}
    kept, anew = (run(seed, "d2f", *PROMPTS, cache=cache, **own) for cache in ("exact", "none"))
    assert kept.tokens.equal(anew.tokens) and kept.nfe == anew.nfe and kept.rows < anew.rows


def test_the_refresh_of_a_block_writes_its_first_cell():
    """Would catch a view that does not say that it leads, also inside another, and one that says so on a model without a shift."""
    for name, own in [("fast-dllm", {"cache": cache}) for cache in STALE] + [
        ("streaming", {"window_size": 3}),
        ("dream", {"cache": "dual"}),
    ]:
        if name in STRATEGIES:
            steps = [
                step.commit[0].nonzero()[:, 0].tolist() for step in decode(dream(), [1, 2], name, **LENGTHS | own) if step.window.age == 0
            ]
            assert steps == [[0]] * 3
    first = next(decode(random_model(0), [1, 2], "fast-dllm", **LENGTHS | {"threshold": 0.1}))
    assert first.commit.sum() > 1


def test_a_refresh_of_a_block_whose_first_cell_is_given_is_not_idle():
    """Would catch a forward that writes nothing: no later one lacks the row of a cell that is written already."""
    for cache in STALE:
        steps = decode(dream(), [1, 2], "fast-dllm", [3, *[MASK] * 7] * 2, block_length=8, cache=cache)
        assert all(step.commit.any() for step in steps)


@pytest.mark.parametrize("first, shift, rows", [(4, 1, [0, 1, 2]), (4, 0, [1, 2, 3]), (5, 1, [0, 0, 1])])
def test_a_missing_row_is_no_row_before_the_query(first, shift, rows):
    """Would catch the row -1, which is the last."""
    window = SimpleNamespace(start=5, end=8, live=torch.tensor([0]))
    assert torch.arange(20)[scored(Pass(slice(first, 20)), window, shift)].tolist() == rows


# --- steps


def test_one_step_a_block_still_fills_it():
    """Would catch what the authors' code leaves: with a cache and one step for each block, all but its first cell would stay masks."""
    for cache in ("prefix", "dual"):
        result = run(0, "fast-dllm", cache=cache, threshold=None, steps=3)
        assert result.nfe == 6 and MASK not in result.tokens


def test_ar_is_not_shifted_twice():
    """Would catch two shifts that add up: on such a model, too, the next token is read off the last row."""
    if "ar" not in STRATEGIES:
        pytest.skip("its file is not there")
    x = [1, 2, 3]
    for _ in range(6):
        causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        logits = dream()(torch.tensor([x]), Pass(mask=causal))[0, -1]
        logits[MASK] = -torch.inf
        x.append(int(logits.argmax()))
    assert generate(dream(), x[:3], "ar", gen_length=6, eos="fill").tokens[0].tolist() == x


# --- what refuses


FIRST = [case for i, case in enumerate(CASES) if refuses(case) and case[0] != CASES[i - 1][0]]


def test_the_papers_decode_it_and_what_reads_rows_refuses():
    """Would catch a part that says of itself what it is not, in either direction."""
    there = {name for name, _ in CASES}
    assert MADE_FOR & there <= {name for name, _ in SHIFTED} and REFUSING & there <= {name for name, _ in FIRST}


@pytest.mark.parametrize("name, settings", FIRST, ids=[name for name, _ in FIRST])
def test_what_was_not_made_for_a_shift_says_so(name, settings):
    """Would catch a strategy that reads a row as its own cell's, and answers nonsense."""
    refused(dream(), name, "is not made for a model whose logits predict the token after theirs, as Dream's do", **settings)
    assert generate(random_model(0), [1], name, **LENGTHS | settings).nfe  # the control


def test_parts_of_ones_own_say_that_they_are_made_for_it():
    """Would catch a view that is taken at its word, and a rule that must say what it cannot know."""

    def rule(scores, candidates, window):
        return scores.confidence > 0.5

    def view(s, window: Window) -> Pass:
        return Pass(slice(0, s.x.shape[1]))

    refused(dream(), Strategy(rule, view, serial), "the view view of test_shift.py is not made for a model")
    assert generate(dream(), [1], Strategy(rule, has(shifts=True)(view), serial), **LENGTHS).nfe

    def forward(s, window, at):
        return s.forward(window, at)

    refused(dream(), Strategy(rule, full, serial, forward=forward), "the forward forward of test_shift.py is not made for a model")
    refused(dream(), Strategy(has(revises=True)(lambda *_: ...), full, serial), "is not made for a model")


def test_a_view_that_leads_still_computes_the_block():
    """Would catch a check that a missing row has switched off."""

    @has(shifts=True, leads=True)
    def late(s, window: Window) -> Pass:
        return Pass(slice(0 if window.age == 0 else window.start + 1, s.x.shape[1]), slice(0, s.x.shape[1]))

    with pytest.raises(ValueError, match="does not compute the slots 1 .. 8"):
        generate(dream(), [1], Strategy(threshold_rule(0.9), late, serial), **LENGTHS)


def test_parts_put_together_by_hand_decode_it():
    """Would catch what only the builders know."""
    for strategy in (
        Strategy(quota, cached("prefix"), serial),
        Strategy(Timesteps(0.2), cached("dual"), serial),
        Strategy(threshold_rule(0.5), block_causal(), pipeline(0.1, 0.9)),
        Strategy(threshold_rule(0.5), full, pipeline(0.1, 0.9)),
    ):
        result = generate(dream(), PROMPTS, strategy, **LENGTHS)
        assert MASK not in result.tokens
        for row, prompt in enumerate(PROMPTS):
            alone = generate(dream(), prompt, dataclasses.replace(strategy), **LENGTHS)
            assert alone.tokens[0, len(prompt) :].equal(result.tokens[row, result.prompt_length :])


def test_guides_and_guidance():
    """Would catch rows that only half of a guided forward has."""
    assert "guide" in GUIDE  # whose strategies refuse, above
    for cache in ("none", *STALE):
        plain, guided = (run(1, "fast-dllm", *PROMPTS, cache=cache, threshold=0.5, cfg_scale=scale) for scale in (0.0, 0.7))
        assert not plain.tokens.equal(guided.tokens) and MASK not in guided.tokens
