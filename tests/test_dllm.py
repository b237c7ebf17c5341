"""Properties of the loop and its strategies on small random models, each with a control that shows the test could fail."""

import dataclasses
from typing import get_args

import pytest
import torch
from conftest import EOS, MASK, random_filter, random_model, random_prompt
from hypothesis import given
from hypothesis import strategies as st

import dllm
from dllm import STRATEGIES, Scores, Settings, StepLimit, Strategy, Window, build, decode, generate
from model import Pass
from options import options

CACHES = get_args(dllm.CacheName)
GUIDE = {"guide": random_model(7), "block_length": 1}
# Every strategy with every cache it takes, at settings that make these models commit several tokens at once.
CASES = [
    ("llada", {}),
    ("llada", {"steps": 9}),
    ("llada", {"cfg_scale": 0.7}),
    *[("llada", {"remasking": order}) for order in ("margin", "entropy")],
    *[("fast-dllm", {"cache": cache, "threshold": 0.5}) for cache in CACHES],
    *[("fast-dllm", {"cache": cache, "factor": 1.0}) for cache in ("none", "prefix", "dual")],
    *[("fast-dllm", {"cache": cache, "threshold": None, "steps": 9}) for cache in ("prefix", "dual")],
    ("fast-dllm", {"cache": "dual", "threshold": 0.5, "cfg_scale": 0.7}),
    *[("localleap", {"cache": cache, "threshold": 0.7, "relaxed_threshold": 0.3, "radius": 2}) for cache in CACHES],
    *[("streaming", {"cache": cache, "threshold": 0.7, "window_size": 4}) for cache in CACHES],
    *[("d2f", {"cache": cache, "skip_threshold": 0.5, "decoded_token_threshold": 0.5}) for cache in ("none", "exact")],
    *[("hierarchy", {"cache": cache, "high": 0.7, "low": 0.3}) for cache in CACHES],
    *[("smoothing", {"cache": cache, "threshold": 0.6, "fall": fall}) for cache in CACHES for fall in (None, 0.1)],
    *[("credit", {"cache": cache, "threshold": 0.6}) for cache in CACHES],
    *[("saber", {"cache": cache}) for cache in CACHES],
    *[("editing", {"cache": cache, "threshold": 0.6, "edit_threshold": 0.4}) for cache in CACHES],
    ("conv", {"width": 5}),
    ("conv", {"block_length": 24, "steps": 9}),
    ("dkv", {"refresh": 3}),
    ("dkv", {"refresh": 3, "threshold": 0.5}),
    ("dkv", {"refresh": 3, "prefill": True}),
    *[("sparse", settings) for settings in ({}, {"threshold": 0.5}, {"keep_ratio": 0.2, "cfg_scale": 0.7})],
    ("dllm-cache", {"prompt_interval_steps": 4, "gen_interval_steps": 3}),
    ("dllm-cache", {"gen_interval_steps": 7, "threshold": 0.5}),
    ("dllm-cache", {"prompt_interval_steps": 2, "gen_interval_steps": 3, "cfg_scale": 0.7}),
    *[("d3llm", {"theta": 1.0, "decoded_token_threshold": 0.5, "delay": delay, "refresh": r}) for delay, r in ((0, 99), (1, 4), (2, 1))],
    ("dllm-var", {"threshold": 0.5}),
    *[("freedave", {"cache": cache}) for cache in CACHES],
    *[("spiffy", {"cache": cache, "threshold": 0.7}) for cache in CACHES],
    *[("swift", {"cache": cache, "skip": "1"}) for cache in CACHES],
    *[("apd", GUIDE | {"recompute": w, "lookahead": m, "share": r}) for w, m, r in ((16, 100, 0.7), (2, 5, 0.9), (None, 8, 0.5))],
    ("apd", GUIDE | {"lookahead": 8, "cfg_scale": 0.7}),
    *[("guided", GUIDE | {"recompute": w, "lookahead": m, "top": k}) for w, m, k in ((0, 32, 5), (3, 4, 20), (None, 8, 1))],
    *[("learn2pd", {"cache": cache, "filter": random_filter(8), "tau": 0.5}) for cache in CACHES],
    *[("prism", {"cache": cache, "threshold": 0.5, "n": 4, "k": 2, "interval": 1, "search_to": 1.0}) for cache in CACHES],
    ("prism", {"cache": "dual", "n": 3, "k": 1, "threshold": None, "cfg_scale": 0.7, "interval": 2, "decay": 1.2}),
    ("ar", {"block_length": 1}),
]
REVISING = ("saber", "editing")  # which write to a cell more than once
DRAFTING = ("freedave", "spiffy", "swift")  # whose forwards compute more than one canvas, and not every commit has one
GUIDED = ("apd", "guided")  # whose forwards are two, one of another model
TWICE = ("swift", *GUIDED)  # which may run two forwards for a token
SEARCHING = ("prism",)  # which decode several canvases
case = st.sampled_from(CASES)
one_canvas = st.sampled_from([case for case in CASES if case[0] not in SEARCHING])
seeds = st.integers(0, 10_000)
LENGTHS = {"gen_length": 24, "block_length": 8}
GREEDY = {"temperature": 0.0}  # also where a strategy samples by default


def run(model_seed: int, strategy, *prompts, layers: int = 2, **settings):
    prompts = list(prompts) or [random_prompt(model_seed, 5 + model_seed % 7)]
    return generate(random_model(model_seed, n_layers=layers), prompts, strategy, **LENGTHS | GREEDY | settings)


def answers(result) -> list[list[int]]:
    return result.tokens[:, result.prompt_length :].tolist()


def test_every_strategy_and_every_choice_of_cache_is_among_the_cases():
    """Would catch a new strategy that the properties below never see."""
    assert {name for name, _ in CASES} == set(STRATEGIES)
    for name, builder in STRATEGIES.items():
        if "cache" in options(builder):
            assert set(options(builder)["cache"].choices) == {settings["cache"] for other, settings in CASES if other == name}


# --- contracts of every strategy -----------------------------------------------------------------------------------------------------


@given(seeds, case, st.sampled_from(["fill", "stop", "suppress", "defer"]), st.sampled_from([0.0, 0.8]))
def test_no_mask_is_left_and_the_prompt_is_untouched(seed, case, eos, temperature):
    """Would catch a mask that is returned, a written prompt, a wasted forward, or more forwards than tokens (and drafts)."""
    strategy, settings = case
    prompt = random_prompt(seed, 5 + seed % 7)
    result = run(seed, strategy, prompt, eos=eos, temperature=temperature, **settings)
    assert result.tokens[0, : len(prompt)].tolist() == prompt
    assert MASK not in answers(result)[0]
    assert result.forwards == [result.nfe] and (result.nfe <= (48 if strategy in TWICE else 24) or strategy in SEARCHING)
    assert eos != "suppress" or EOS not in answers(result)[0]


@given(seeds, case)
def test_each_row_of_a_batch_equals_the_row_alone(seed, case):
    """Would catch rows that see each other, padding that is seen, and a row that waits or stops with the others: tokens and forwards."""
    strategy, settings = case
    prompts = [random_prompt(seed + i, length) for i, length in enumerate((9, 3, 6, 9))]
    together = run(seed, strategy, *prompts, **settings)
    alone = [run(seed, strategy, prompt, **settings) for prompt in prompts]
    assert answers(together) == [answers(result)[0] for result in alone]
    assert together.forwards == [result.nfe for result in alone]
    assert together.lengths == [result.lengths[0] for result in alone]


@given(seeds, case)
def test_every_forward_commits_in_every_block_that_must_move(seed, case):
    """Would catch a forward that commits nothing, a token outside the candidates, or one that is written twice."""
    strategy, settings = case
    model, prompts, k = random_model(seed), [random_prompt(seed, 7), random_prompt(seed + 1, 4)], settings.get("block_length", 8)
    forwards = 0
    for step in decode(model, prompts, strategy, **LENGTHS | settings):
        forwards += int(step.ran.max())
        assert step.nfe == forwards and step.ran.any() == (step.rows > 0) and (step.ran.all() or strategy in DRAFTING)
        assert strategy in REVISING or not (step.commit & ~step.candidates).any()
        assert not (step.commit & (step.token == MASK)).any() or strategy == "saber"
        must = step.window.must & step.candidates.unflatten(1, (-1, k)).any(-1)
        assert must.any()  # a row that is done with the block waits for the others
        assert ((step.commit & step.candidates).unflatten(1, (-1, k)).any(-1) | ~must).all()


@given(seeds, st.sampled_from([("llada", {"remasking": "random"}), ("fast-dllm", {"threshold": 0.5}), ("d2f", {"skip_threshold": 0.5})]))
def test_the_same_seed_gives_the_same_tokens(seed, case):
    """Would catch randomness that the seed does not govern."""
    strategy, settings = case
    one, two = (run(seed, strategy, temperature=1.0, seed=seed, **settings) for _ in range(2))
    assert one.tokens.equal(two.tokens) and one.nfe == two.nfe


def test_other_seeds_give_other_tokens():
    """Negative control for the test above, and for greedy decoding: there the seed must not matter."""
    assert len({tuple(answers(run(3, "llada", temperature=1.0, seed=seed))[0]) for seed in range(5)}) == 5
    assert len({tuple(answers(run(3, "llada", remasking="random", seed=seed))[0]) for seed in range(5)}) > 1
    assert len({tuple(answers(run(3, "llada", seed=seed))[0]) for seed in range(5)}) == 1


def test_the_random_models_are_worth_decoding():
    """Equalities on a model that repeats three tokens prove nothing: the outputs here are varied and the confidences spread out."""
    distinct = []
    for seed in range(15):
        steps = list(decode(random_model(seed), random_prompt(seed, 6), "llada", **LENGTHS))
        distinct.append(len(set(steps[-1].x[0, 6:].tolist())))
        sure = torch.cat([step.scores.confidence[step.candidates] for step in steps])
        assert sure.quantile(0.1) < 0.5 < sure.quantile(0.9)
    assert sorted(distinct)[7] >= 7


# --- equalities between strategies -----------------------------------------------------------------------------------------------------


def same(*results) -> bool:
    return all(r.tokens.equal(results[0].tokens) and r.nfe == results[0].nfe for r in results)


@given(seeds, st.sampled_from([0.3, 0.6]), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.5, 1.0]))
def test_d2f_with_its_exact_cache_equals_recomputing_everything(seed, tau, add, act):
    """Would catch K/V that are taken from a block before its last token was written."""
    settings = {"skip_threshold": tau, "block_add_threshold": add, "decoded_token_threshold": act}
    cached, uncached = (run(seed, "d2f", cache=cache, **settings) for cache in ("exact", "none"))
    assert same(cached, uncached) and (cached.rows < uncached.rows or cached.nfe == 1)


@given(seeds, st.sampled_from(["prefix", "dual", "vicinity", "frozen"]), st.sampled_from([0.3, 0.6]))
def test_one_layer_makes_approximate_caches_exact(seed, cache, tau):
    """Would catch a wrong slot or position: in the first layer K/V depend on nothing but the token and its place."""
    plain, cached = (run(seed, "fast-dllm", layers=1, cache=c, threshold=tau) for c in ("none", cache))
    assert same(plain, cached) and (cached.rows < plain.rows or plain.nfe == 3)


@given(seeds, st.sampled_from(["prefix", "dual"]), st.sampled_from([None, 3]))
def test_a_cache_that_is_refreshed_in_every_step_equals_none(seed, cache, window_size):
    """Would catch an approximation beyond staleness, such as a mask or a slot that only the cached path sees."""
    fresh = dllm.cached(cache, window_size)
    always = lambda s, window: fresh(s, dataclasses.replace(window, age=0))  # noqa: E731
    rule = dllm.threshold_rule(0.5)
    assert same(run(seed, Strategy(rule, always, dllm.serial)), run(seed, Strategy(rule, dllm.cached("none", window_size), dllm.serial)))


@given(seeds, st.sampled_from(["none", "prefix", "dual"]))
def test_an_unreachable_threshold_commits_one_token_a_forward(seed, cache):
    """Would catch a rule that accepts more, or other, than the surest token when nothing passes."""
    quota = run(seed, "fast-dllm", cache=cache, threshold=None)
    assert same(run(seed, "fast-dllm", cache=cache, threshold=1.5), quota) and quota.nfe == 24
    assert cache != "none" or same(quota, run(seed, "llada"))


@given(seeds, st.sampled_from(["none", "prefix", "dual"]))
def test_threshold_zero_fills_a_block_in_one_forward(seed, cache):
    """Would catch the originals' second, useless forward in cached modes."""
    assert run(seed, "fast-dllm", cache=cache, threshold=0.0).nfe == 3


@given(seeds, st.sampled_from(["none", "prefix", "dual"]), st.sampled_from([0.4, 0.7]))
def test_localleap_without_relaxation_is_the_plain_threshold(seed, cache, tau):
    """Would catch a neighbourhood that is off by one, or a relaxed threshold that applies elsewhere."""
    plain = run(seed, "fast-dllm", cache=cache, threshold=tau)
    alike = run(seed, "localleap", cache=cache, threshold=tau, relaxed_threshold=tau, radius=3)
    # with radius 0 a neighbourhood is the anchor itself, which passes anyway
    assert same(plain, alike, run(seed, "localleap", cache=cache, threshold=tau, relaxed_threshold=0.1, radius=0))


@given(seeds, st.sampled_from(["none", "prefix", "dual"]), st.sampled_from([0.4, 0.7]))
def test_streaming_without_pruning_is_the_prefix_cache_up_to_the_block_with_eos(seed, cache, tau):
    """Would catch an exit that is too early, too late, or does not write EOS."""
    streamed = run(seed, "streaming", cache=cache, threshold=tau, window_size=24, confidence_alpha=0.0)
    plain = answers(run(seed, "fast-dllm", cache=cache, threshold=tau))[0]
    if EOS in plain:
        end = (plain.index(EOS) // 8 + 1) * 8
        plain[end:] = [EOS] * (24 - end)
    assert answers(streamed)[0] == plain


def test_some_of_these_runs_end_early():
    """Negative control for the test above: without an EOS it says nothing about the exit."""
    runs = [run(seed, "streaming", threshold=0.4, confidence_alpha=0.0) for seed in range(40)]
    assert sum(answers(r)[0][-8:] == [EOS] * 8 for r in runs) >= 5


@given(seeds, st.sampled_from([0.3, 0.6]))
def test_d2f_one_block_at_a_time_is_serial_decoding_under_the_block_mask(seed, tau):
    """Would catch a pipeline that opens or activates too early, and a serial schedule that recomputes what is exact."""
    piped = run(seed, "d2f", skip_threshold=tau, block_add_threshold=1.0, decoded_token_threshold=1.0)
    rule = dllm.threshold_rule(tau, strict=True)
    cached, uncached = (
        run(seed, Strategy(rule, view, dllm.serial, eos="stop")) for view in (dllm.block_causal, dllm.block_causal_uncached)
    )
    assert same(piped, cached, uncached) and piped.rows == cached.rows and (cached.rows < uncached.rows or cached.nfe == 1)


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_d2f_activation_is_idle_when_blocks_are_added_later_still(seed, a, b):
    """Would catch an order of the two steps other than the paper's: a block that opens at once meets its activation threshold."""
    act, add = sorted((a, b))
    one, two = (run(seed, "d2f", skip_threshold=0.6, block_add_threshold=add, decoded_token_threshold=t) for t in (act, 0.0))
    assert same(one, two)


@given(seeds)
def test_ar_is_next_token_prediction_without_a_cache(seed):
    """Would catch logits of the wrong slot, a cache that misses a token, and a prompt that sees its own future."""
    model, prompt = random_model(seed), random_prompt(seed, 1 + seed % 7)
    result = run(seed, "ar", prompt, block_length=1)
    text = list(prompt)
    while len(text) < len(prompt) + 24 and EOS not in text:
        Q = len(text)
        logits = model(torch.tensor([text]), Pass(mask=torch.ones(Q, Q, dtype=torch.bool).tril()))[0, -1]
        logits[MASK] = -torch.inf
        text.append(logits.argmax().item())
    written = len(text) - len(prompt)
    assert result.tokens[0].tolist() == text + [EOS] * (24 - written)
    assert result.nfe == written and result.rows == len(prompt) + written - 1


def test_strategies_differ_where_they_approximate():
    """Negative controls: with stale slots, lower thresholds, pruned suffixes or another mask, some tokens must change."""

    def changed(strategy, settings, other, others):
        return sum(not run(seed, strategy, **settings).tokens.equal(run(seed, other, **others).tokens) for seed in range(8))

    plain = {"cache": "none", "threshold": 0.5}
    assert changed("fast-dllm", plain, "fast-dllm", plain | {"cache": "prefix"}) >= 4
    assert changed("fast-dllm", plain | {"cache": "prefix"}, "fast-dllm", plain | {"cache": "dual"}) >= 4
    assert changed("fast-dllm", plain, "llada", {}) >= 4
    assert changed("localleap", {"threshold": 0.7, "relaxed_threshold": 0.2}, "fast-dllm", {"cache": "none", "threshold": 0.7}) >= 4
    assert changed("streaming", {"window_size": 0}, "streaming", {"window_size": None}) >= 4
    assert changed("d2f", {"eos": "fill"}, "fast-dllm", {"cache": "none"}) >= 4


@given(seeds)
def test_guidance_of_scale_zero_is_none_and_guidance_is_its_formula(seed):
    """Would catch swapped halves, and a weight that is off by one."""
    model, prompt = random_model(seed), random_prompt(seed, 6)
    step = next(decode(model, prompt, "llada", cfg_scale=0.7, **LENGTHS))
    with_prompt = torch.tensor([prompt + [MASK] * 24])
    without = torch.tensor([[MASK] * 30])
    guided, unguided = model(with_prompt), model(without)
    expected = (unguided + 1.7 * (guided - unguided))[:, 6:14]
    expected[..., MASK] = -torch.inf
    torch.testing.assert_close(step.scores.confidence, expected.softmax(-1).amax(-1), rtol=1e-4, atol=1e-5)
    assert step.rows == 60
    assert same(run(seed, "llada", cfg_scale=0.0), run(seed, "llada"))


@given(seeds, case)
def test_eos_policies_differ_only_in_what_they_promise(seed, case):
    """Would catch a policy that some strategy ignores."""
    strategy, settings = case
    k = settings.get("block_length", 8)
    filled, stopped, deferred = (answers(run(seed, strategy, eos=eos, **settings))[0] for eos in ("fill", "stop", "defer"))
    if EOS in stopped:
        end = (stopped.index(EOS) // k + 1) * k
        if strategy not in ("d2f", "d3llm"):  # whose later blocks may be open already: those are finished
            assert stopped[:end] == filled[:end]
            assert stopped[end:] == [EOS] * (24 - end)
    else:
        assert stopped == filled
    steps = decode(random_model(seed), random_prompt(seed, 5 + seed % 7), strategy, **LENGTHS | {"eos": "defer"} | settings)
    for step in steps:
        late = step.commit & (step.scores.token == EOS)
        early = step.candidates & (step.scores.token != EOS)
        by_block = (late.unflatten(1, (-1, k)).any(-1), (early & ~step.commit).unflatten(1, (-1, k)).any(-1))
        assert not (by_block[0] & by_block[1]).any() or "threshold" not in settings  # a quota may reach down to an EOS
    assert len(deferred) == 24


# --- rules on one worked example -------------------------------------------------------------------------------------------------------

CONFIDENCE = [0.95, 0.80, 0.60, 0.92, 0.70, 0.30, 0.76, 0.50]  # the example of docs/idea.md


ONE = {"must": torch.ones(1, 1, dtype=torch.bool), "live": torch.tensor([0]), "turns": torch.tensor([0])}


def committed(rule, age=1, forwards=4, suffix=0, confidence=CONFIDENCE, masked=None) -> list[int]:
    """Positions a rule accepts among eight cells, of which `masked` (default all) are candidates."""
    doubt = 1 / torch.tensor([confidence]) - 1
    candidates = torch.tensor([[i in (masked or range(8)) for i in range(8)]])
    scores = Scores(torch.zeros(1, 8, dtype=torch.int64), doubt, doubt, doubt)
    window = Window(8, 16, age, 8, suffix, forwards, **ONE)
    return (rule(scores, candidates, window) & candidates)[0].nonzero()[:, 0].tolist()


def test_rules_on_the_worked_example():
    """Would catch a change of any rule's meaning; docs/idea.md works these out by hand."""
    assert committed(dllm.quota) == [0, 3]
    assert committed(dllm.threshold_rule(0.9)) == [0, 3]
    assert committed(dllm.threshold_rule(0.76)) == [0, 1, 3, 6]
    assert committed(dllm.threshold_rule(0.92, strict=True)) == [0]
    assert committed(dllm.factor_rule(1.0)) == [0, 1, 3]
    assert committed(dllm.local_leap(0.9, 0.65, radius=2)) == [0, 1, 3, 4]
    assert committed(dllm.adaptive(0.9, 0.5, None), masked=[1, 2, 4, 5, 6, 7]) == [1]  # six of eight masked: 0.9 * (1 - 0.5 / 4) = 0.7875
    assert committed(dllm.adaptive(0.9, 0.5, None), masked=[1, 2, 4, 5, 6, 7], age=0) == []
    assert committed(dllm.adaptive(0.9, 0.5, 3), masked=[1, 2, 4, 5, 6, 7], suffix=8) == []  # ten of twelve: 0.825


@given(st.lists(st.floats(0.01, 0.999), min_size=8, max_size=8), st.sets(st.integers(0, 7), min_size=1), st.floats(0, 3))
def test_factor_rule_equals_a_loop_over_ranks(confidence, masked, factor):
    """Would catch an off-by-one in the rank, and a run that goes on behind its first failure."""
    order = sorted(masked, key=lambda i: -torch.tensor(confidence[i]).item())
    expected = []
    for r, i in enumerate(order, start=1):
        c = 1 / (1 + (1 / torch.tensor(confidence[i]) - 1))
        if c < 1 - torch.tensor(factor) / (r + 1):
            break
        expected.append(i)
    assert committed(dllm.factor_rule(factor), confidence=confidence, masked=masked) == sorted(expected)


@given(
    st.lists(st.floats(0.01, 0.999), min_size=8, max_size=8), st.sets(st.integers(0, 7), min_size=1),
    st.floats(0.2, 1), st.floats(0, 1), st.integers(0, 9),
)  # fmt: skip
def test_localleap_equals_a_loop_over_neighbours(confidence, masked, kappa, tau, radius):
    """Would catch anchors among the committed, chains of relaxed tokens, and neighbourhoods that are cut or too wide."""
    tau = min(tau, kappa)
    sure = {i: (1 / (1 + (1 / torch.tensor(confidence[i]) - 1))).item() for i in masked}
    kappa, tau = torch.tensor(kappa).item(), torch.tensor(tau).item()
    anchors = [i for i in masked if sure[i] >= kappa]
    expected = [i for i in sorted(masked) if sure[i] >= (tau if any(abs(i - a) <= radius for a in anchors) else kappa)]
    leap = committed(dllm.local_leap(kappa, tau, radius), confidence=confidence, masked=masked)
    assert leap == expected
    assert set(leap) >= set(committed(dllm.threshold_rule(kappa), confidence=confidence, masked=masked))


@given(st.integers(1, 12), st.integers(1, 12))
def test_quotas_share_the_masks_out_evenly_the_larger_first(masks, forwards):
    """Would catch a quota other than LLaDA's: m // S each, and one more in the first m % S forwards."""
    doubt = torch.rand(1, 12)
    left, spent = torch.arange(12)[None] < masks, []
    for index in range(forwards):
        window = Window(0, 12, index, 0, 0, forwards - index, **ONE)
        commit = dllm.quota(Scores(doubt, doubt, doubt, doubt), left, window) & left
        spent.append(int(commit.sum()))
        left = left & ~commit
    assert spent == [masks // forwards + (i < masks % forwards) for i in range(forwards)]


def test_ties_are_broken_by_position():
    """Would catch an order that the sort kernel chooses."""
    rank = dllm.rank(torch.tensor([[0.5, 0.1, 0.1, 0.5, 0.1]]), torch.tensor([[True, True, False, True, True]]))
    assert rank.tolist() == [[2, 0, 4, 3, 1]]


def test_block_mask_of_the_docstring():
    """Would catch a mask that is off by one block."""
    mask = dllm.block_mask(2, 2, 0, 6).int().tolist()
    assert mask == [[1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0, 0]] * 2 + [[1, 1, 1, 1, 1, 1]] * 2
    assert dllm.block_mask(2, 2, 4, 6).int().tolist() == mask[4:]


def test_pruning_keeps_the_window_and_the_last_slot():
    """Would catch a window counted in blocks, a trailing slot that is lost, or one that is there twice."""
    canvas = dllm.Canvas(random_model(0), [[1, 2]], build("streaming"), Settings(**LENGTHS))
    window = Window(2, 10, 1, 2, 16, None, **ONE)
    at = dllm.cached("prefix", 3)(canvas, window)
    assert at.visible.tolist() == [*range(13), 25] and at.query.tolist() == [*range(2, 13), 25]
    assert dllm.cached("prefix", 0)(canvas, window).visible.tolist() == [*range(10), 25]
    assert dllm.cached("prefix", 15)(canvas, window).visible == slice(0, 26)
    at = dllm.cached("dual", 3)(canvas, window)
    assert at.visible.tolist() == [*range(13), 25] and at.query == slice(2, 10)


# --- combinations and limits -----------------------------------------------------------------------------------------------------------


@given(
    seeds, st.sampled_from(["quota", "threshold", "factor", "leap", "adaptive"]), st.sampled_from(["none", "prefix", "dual"]),
    st.sampled_from([None, 3]),
)  # fmt: skip
def test_any_rule_works_with_any_cache(seed, rule, cache, window_size):
    """Would catch a rule that leans on the view it is usually paired with."""
    rules = {
        "quota": dllm.quota, "threshold": dllm.threshold_rule(0.5), "factor": dllm.factor_rule(1.0),
        "leap": dllm.local_leap(0.7, 0.3, 2), "adaptive": dllm.adaptive(0.7, 0.3, window_size),
    }  # fmt: skip
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    mine = Strategy(rules[rule], dllm.cached(cache, window_size), dllm.serial)
    together = run(seed, mine, *prompts)
    assert answers(together) == [answers(run(seed, mine, prompt))[0] for prompt in prompts]
    assert MASK not in sum(answers(together), [])


def test_combinations_without_meaning_are_refused():
    """Would catch a pipeline over a cache that goes stale unnoticed."""
    for view in (dllm.cached("prefix"), dllm.cached("dual")):
        with pytest.raises(ValueError, match="pipelined blocks need a view without stale slots"):
            Strategy(dllm.threshold_rule(0.9), view, dllm.pipeline(0.1, 0.9))
    with pytest.raises(ValueError, match="a quota of tokens per step has no meaning for pipelined blocks"):
        Strategy(dllm.quota, dllm.block_causal, dllm.pipeline(0.1, 0.9))


def test_steps_are_a_cap_for_thresholds_and_hitting_it_says_so(model):
    """Would catch a cap that is ignored, or that returns masks."""
    one_by_one = LENGTHS | {"threshold": 2.0}
    assert generate(model, [1, 2, 3], "fast-dllm", steps=24, **one_by_one).nfe == 24
    with pytest.raises(StepLimit, match="steps=23 forwards are spent, 1 masks are left"):
        generate(model, [1, 2, 3], "fast-dllm", steps=23, **one_by_one)


def test_steps_spread_the_tokens_of_llada(model):
    """Would catch a quota taken over the canvas instead of the block."""
    assert [int(step.commit.sum()) for step in decode(model, [1, 2], "llada", steps=9, **LENGTHS)] == [3, 3, 2] * 3
    assert generate(model, [1, 2], "llada", steps=48, **LENGTHS).nfe == 24  # a forward that could commit nothing is not run


def test_rows_count_what_was_computed(model):
    """Would catch counters that hide the work: 2 rows of 5 + 24 positions, then of what each cache leaves to do."""

    def rows(cache):
        steps = list(decode(model, [[1] * 5] * 2, "fast-dllm", cache=cache, threshold=2.0, **LENGTHS))
        return [steps[i].rows for i in (0, 1, 8, 9)]

    assert rows("none") == [58, 58, 58, 58]
    assert rows("prefix") == [58, 48, 58, 32]
    assert rows("dual") == [58, 16, 58, 16]


def test_decode_checks_before_the_first_step(model):
    """Would catch a generator that finds the mistake only when it is iterated."""
    with pytest.raises(ValueError, match="gen_length 24 is not a multiple of block_length 7: the nearest is 21"):
        decode(model, [1], gen_length=24, block_length=7)


def test_a_prompt_may_be_a_tensor_a_list_or_a_list_of_lists(model):
    """Would catch a form of prompt that decodes to something else."""
    forms = [[4, 5, 6], [[4, 5, 6]], torch.tensor([[4, 5, 6]]), torch.tensor([4, 5, 6])]
    assert same(*(generate(model, form, "fast-dllm", **LENGTHS) for form in forms))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gen_length": 0}, "gen_length is 0"),
        ({"block_length": 0}, "block_length is 0"),
        ({"gen_length": 24.0}, "gen_length is 24.0, expected a value of type int"),
        ({"steps": 10}, "steps 10 do not divide evenly among 3 blocks: the nearest is 9"),
        ({"temperature": -1.0}, "temperature is -1.0, expected at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"cfg_scale": -0.5}, "cfg_scale is -0.5"),
        ({"eos": "maybe"}, "eos is 'maybe', expected one of fill, stop, suppress, defer"),
        ({"seed": -1}, "seed is -1"),
        ({"compile": "yes"}, "compile is 'yes', expected a value of type bool"),
        ({"radius": 2}, "strategy llada has no setting radius: that is a setting of localleap"),
        ({"colour": 2}, "strategy llada has no setting colour: it takes remasking"),
        ({"strategy": "lada"}, "unknown strategy 'lada': choose one of llada, fast-dllm, localleap, streaming, d2f"),
        ({"strategy": "fast-dllm", "cache": "exact"}, "cache is 'exact', expected one of none, prefix, dual"),
        ({"strategy": "fast-dllm", "threshold": -0.1}, "threshold is -0.1"),
        ({"strategy": "fast-dllm", "threshold": 0.8, "factor": 1.0}, "threshold=0.8 and factor=1 are two rules"),
        ({"strategy": "localleap", "radius": -1}, "radius is -1, expected at least 0"),
        ({"strategy": "localleap", "relaxed_threshold": 0.95}, "relaxed_threshold is 0.95, expected at most threshold=0.9"),
        ({"strategy": "streaming", "window_size": -1}, "window_size is -1"),
        ({"strategy": "streaming", "confidence_alpha": 1.5}, "confidence_alpha is 1.5"),
        ({"strategy": "d2f", "block_add_threshold": 1.1}, "block_add_threshold is 1.1"),
        ({"strategy": "d2f", "decoded_token_threshold": -1.0}, "decoded_token_threshold is -1.0"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [[1], []]}, "prompt 1 is empty"),
        ({"prompt": [1, MASK]}, "the prompt holds the mask token, id 39"),
        ({"prompt": [1, 40]}, "the prompt holds the id 40, but the vocabulary ends at 39"),
        ({"prompt": [1] * 490}, "the prompt has 490 tokens, gen_length is 24: together more than the model's 512"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_valid(model, settings, message):
    """Would catch a mistake that surfaces later, or as something else."""
    arguments = LENGTHS | {"prompt": [1], "strategy": "llada"} | settings
    with pytest.raises(ValueError) as error:
        decode(model, **arguments)
    assert message in str(error.value)


def test_every_setting_is_explained_once():
    """Would catch a setting without a meaning in the help, or a meaning of a setting that is gone (options raises KeyError)."""
    for function in (Settings, *STRATEGIES.values()):
        assert all(option.meaning for option in options(function).values())
