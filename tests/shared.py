"""What tests of the decoder share: every strategy at settings that suit the small models, and one way to run them.

A system that is not there (its file in strategies/ is deleted) has no cases here; its tests are systems/test_<file>.py.
"""

import functools
from typing import get_args

import pytest
import torch
from hypothesis import strategies as st

import dllm
from conftest import random_filter, random_frequencies, random_model, random_prompt
from dllm import Result, generate
from kernels import Scores
from strategies import STRATEGIES, Window, build
from strategies.fast_dllm import CacheName, cached, factor_rule, threshold_rule
from strategies.llada import quota

CACHES = get_args(CacheName)
GUIDE = {"guide": random_model(7), "block_length": 1}
# Weights at which rounding errors, which go from forward to forward with what was expected, stay small on random models.
SOFT = {"weight": 0.03, "growth": 0.01, "max_weight": 0.06}
GAPS = {"early": 6.0, "mid": 4.0, "late": 2.0, "answer_start": 6, "inner": 8, "block_length": 24}
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
    *[("dream", {"cache": cache, "steps": 9, "alg": "topk_margin"}) for cache in CACHES],
    ("dream", {"cache": "none", "block_length": 24, "steps": 9, "top_p": 0.9, "top_k": 3}),
    *[("hierarchy", {"cache": cache, "high": 0.7, "low": 0.3}) for cache in CACHES],
    *[("smoothing", SOFT | {"cache": cache, "threshold": 0.6, "fall": fall}) for cache in CACHES for fall in (None, 0.1)],
    *[("credit", {"cache": cache, "threshold": 0.6}) for cache in CACHES],
    *[("dinfer", SOFT | {"cache": cache, "high": 0.6, "low": 0.3, "alpha": alpha}) for cache in CACHES for alpha in (0.0, 1.0)],
    *[("saber", {"cache": cache}) for cache in CACHES],
    *[("editing", {"cache": cache, "threshold": 0.6, "edit_threshold": 0.4}) for cache in CACHES],
    *[("editing", {"cache": cache, "threshold": 0.6, "edit_threshold": 0.4, "overlap": True}) for cache in ("none", "dual")],
    ("conv", {"width": 5}),
    ("conv", {"block_length": 24, "steps": 9}),
    ("dkv", {"refresh": 3}),
    ("dkv", {"refresh": 3, "threshold": 0.5}),
    ("dkv", {"refresh": 3, "prefill": True}),
    *[("sparse", settings) for settings in ({}, {"threshold": 0.5}, {"keep_ratio": 0.2, "cfg_scale": 0.7})],
    ("dllm-cache", {"prompt_interval_steps": 4, "gen_interval_steps": 3}),
    ("dllm-cache", {"gen_interval_steps": 7, "threshold": 0.5}),
    ("dllm-cache", {"prompt_interval_steps": 2, "gen_interval_steps": 3, "cfg_scale": 0.7}),
    ("mars", {"prompt_interval_steps": 3, "gen_interval_steps": 2}),
    ("mars", {"prompt_interval_steps": 2, "gen_interval_steps": 3, "threshold": 0.5}),
    ("mars", {"prompt_interval_steps": 2, "gen_interval_steps": 3, "cfg_scale": 0.7, "transfer_ratio": 0.1}),
    *[("d3llm", {"theta": 1.0, "decoded_token_threshold": 0.5, "delay": delay, "refresh": r}) for delay, r in ((0, 99), (1, 4), (2, 1))],
    ("dllm-var", {"threshold": 0.5}),
    ("dllm-var", {"threshold": 0.5, "edit_threshold": 0.0}),
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
    *[("eb", {"cache": cache, "gamma": 2.0}) for cache in CACHES],
    *[("frechet", {"cache": cache, "margin": 0.1}) for cache in CACHES],
    *[("klass", {"cache": cache, "threshold": 0.4, "kl_threshold": 0.5, "history": 1 + (cache == "none")}) for cache in CACHES],
    ("klass", {"cache": "none", "threshold": 0.4, "kl_threshold": 0.5, "steps": 9}),
    *[("wino", {"threshold": 0.4, "threshold_back": back}) for back in (0.3, 0.9)],
    ("wino", {"threshold": 0.4, "threshold_back": 0.6, "cfg_scale": 0.7}),
    *[("dus", {"cache": cache}) for cache in CACHES],
    *[("spaced", {"cache": cache, "threshold": 0.4, "stride": 4}) for cache in CACHES],
    ("spaced", {"cache": "none", "gamma": 2.0, "stride": 4}),
    *[("pc", {"cache": cache, "frequencies": random_frequencies(), "steps": 9}) for cache in CACHES],
    *[("p2", {"cache": cache, "steps": 9}) for cache in CACHES],
    *[("remdm", {"cache": cache, "extra": 2, "number": 2}) for cache in CACHES],
    ("remdm", {"cache": "none", "extra": 3, "steps": 6}),
    *[("prophet", {"cache": cache, **GAPS}) for cache in CACHES],
    ("prophet", GAPS | {"cache": "none", "steps": 6}),
    *[("sdar", {"cache": cache, "threshold": 0.5}) for cache in ("none", "exact")],
    ("sdar", {"cache": "exact", "threshold": 0.5, "sub_blocks": 2, "block_length": 4, "block_add_threshold": 0.5}),
    *[("nbdiff", {"cache": cache, "threshold": 0.5, "block_add_threshold": add}) for cache in ("none", "exact") for add in (None, 0.3)],
    ("nbdiff", {"cache": "exact", "threshold": 0.5, "cfg_scale": 0.7, "sub_blocks": 4, "block_length": 2}),
    *[("rcd", {"cache": cache, "threshold": 0.5}) for cache in ("none", "exact")],
    ("rcd", {"cache": "exact", "context": "block", "shift": 0, "threshold": 0.5, "block_add_threshold": 0.3, "cfg_scale": 0.7}),
    *[("fast-dllm-v2", {"cache": c, "threshold": 0.5, "sub_blocks": 2, "block_length": 4}) for c in ("none", "exact", "dual")],
    ("s2d2", {}),
    *[("card", {"cache": cache, "threshold": 0.5}) for cache in ("none", "exact")],
    *[("wedlm", {"block_length": 1, "threshold": t, "window": w}) for t, w in ((0.4, 16), (1.5, 6))],
    *[("s2d2", {"context": context, "shift": 0, "threshold": 0.5, "worth": 1.5}) for context in ("block", "token")],
]
CASES = [case for case in CASES if case[0] in STRATEGIES]
REVISING = ("saber", "editing", "dllm-var", "wino", "p2", "remdm")  # which write to a cell more than once
DRAFTING = ("freedave", "spiffy", "swift")  # whose forwards compute more than one canvas, and not every commit has one
GUIDED = ("apd", "guided")  # whose forwards are two, one of another model
TWICE = ("swift", "s2d2", *GUIDED, "remdm")  # which may run two forwards for a token
TAKING_BACK = ("saber", "wino", "p2", "remdm")
SEARCHING = ("prism",)  # which decode several canvases
case = st.sampled_from(CASES)
one_canvas = st.sampled_from([case for case in CASES if case[0] not in SEARCHING])
seeds = st.integers(0, 11)  # few enough that tests meet each other's decodes, which are run once
LENGTHS = {"gen_length": 24, "block_length": 8}
GREEDY = {"temperature": 0.0}  # also where a strategy samples by default


def name_of(case: tuple[str, dict]) -> str:
    """What pytest calls a case: its strategy and settings, but for other models and files, whose names change."""
    name, settings = case
    return "-".join([name, *(f"{k}={v}" for k, v in settings.items() if k not in ("guide", "filter", "frequencies"))])


every_case = pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
# of each strategy the first and the last
SOME = [case for i, case in enumerate(CASES) if {CASES[i - 1][0], CASES[(i + 1) % len(CASES)][0]} != {case[0]}]
some_cases = pytest.mark.parametrize("case", SOME, ids=map(name_of, SOME))


def run(model_seed: int, strategy, *prompts, layers: int = 2, **settings) -> Result:
    """Decode by a random model. Asked the same again, it hands out the same Result, which nobody may change; `again` decodes anew."""
    prompts = prompts or (random_prompt(model_seed, 5 + model_seed % 7),)
    return decoded(model_seed, strategy, tuple(map(tuple, prompts)), layers, **settings)


@functools.cache
def decoded(model_seed: int, strategy, prompts: tuple, layers: int, **settings) -> Result:
    return generate(random_model(model_seed, n_layers=layers), prompts, strategy, **LENGTHS | GREEDY | settings)


def again(model_seed: int, strategy, *prompts, **settings) -> Result:
    """As `run`, but really."""
    prompts = prompts or (random_prompt(model_seed, 5 + model_seed % 7),)
    return decoded.__wrapped__(model_seed, strategy, tuple(map(tuple, prompts)), 2, **settings)


def answers(result) -> list[list[int]]:
    return result.tokens[:, result.prompt_length :].tolist()


def same(*results) -> bool:
    return all(r.tokens.equal(results[0].tokens) and r.nfe == results[0].nfe for r in results)


def changed(strategy, settings, other, others) -> int:
    """On how many of five models the tokens differ."""
    return sum(not run(seed, strategy, **settings).tokens.equal(run(seed, other, **others).tokens) for seed in range(5))


def refused(model, strategy, message: str, **arguments) -> None:
    """Assert that a decode is refused, before its first step, in these words."""
    with pytest.raises(ValueError) as error:
        dllm.decode(model, **LENGTHS | {"prompt": [1], "strategy": strategy} | arguments)
    assert message in str(error.value)


# --- parts -----------------------------------------------------------------------------------------------------------------------------


def rules(*names: str) -> dict:
    """Rules by the names of their systems, of those that are there, at settings at which they do what sets them apart."""
    made = {
        "localleap": {"threshold": 0.7, "relaxed_threshold": 0.3, "radius": 2},
        "streaming": {"threshold": 0.7, "confidence_alpha": 0.3, "window_size": None},
        "hierarchy": {"low": 0.3, "high": 0.7},
        "conv": {"width": 5, "kappa": 1.0},
        "saber": {"n": 2, "mu": 8},
        "editing": {"threshold": 0.6, "edit_threshold": 0.4},
        "learn2pd": {"filter": random_filter(8), "tau": 0.5},
    }
    plain = {"quota": quota, "threshold": threshold_rule(0.5), "factor": factor_rule(1.0)}
    made = plain | {name: build(name, **settings).rule for name, settings in made.items() if name in STRATEGIES}
    return {name: made[name] for name in names if name in made}


def views(*systems: str) -> dict:
    """Fast-dLLM's caches, and the views of these systems, of those that are there."""
    made = {"dkv": {"refresh": 3}, "sparse": {"keep_ratio": 0.4}, "dllm-cache": {}, "streaming": {"window_size": 3}}
    own = {name: build(name, **made[name]).view for name in systems if name in STRATEGIES}
    return {cache: cached(cache) for cache in CACHES} | own


CONFIDENCE = [0.95, 0.80, 0.60, 0.92, 0.70, 0.30, 0.76, 0.50]  # the example of docs/idea.md
ONE = {"must": torch.ones(1, 1, dtype=torch.bool), "live": torch.tensor([0]), "forwards": torch.tensor([0])}


def committed(rule, age=1, remaining=4, suffix=0, confidence=CONFIDENCE, masked=None) -> list[int]:
    """Positions a rule accepts among eight cells, of which `masked` (default all) are candidates."""
    doubt = 1 / torch.tensor([confidence]) - 1
    candidates = torch.tensor([[i in (masked or range(8)) for i in range(8)]])
    scores = Scores(torch.zeros(1, 8, dtype=torch.int64), doubt)
    window = Window(8, 16, age, 8, suffix, remaining, **ONE)
    return (rule(scores, candidates, window) & candidates)[0].nonzero()[:, 0].tolist()
