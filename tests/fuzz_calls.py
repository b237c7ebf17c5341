"""Calls of generate() and decode(), for fuzz.py: prompts, templates, settings, strategies and parts of wrong types, sizes and nestings.

A call is drawn from rng alone. It ends well in an answer without a mask behind the prompt it was given, or is refused.
"""

import math
import random
from collections.abc import Callable
from functools import partial

import torch

from conftest import EOS, MASK, VOCABULARY, random_model
from dllm import Settings, decode, generate
from kernels import Scores
from model import Pass
from shared import CASES
from strategies import MASKED, STRATEGIES, Strategy, has, options
from strategies.d2f import block_causal, pipeline
from strategies.fast_dllm import cached, factor_rule, threshold_rule
from strategies.llada import ORDERS, full, quota, serial


def none_of_torch(value):
    """A model can be called with anything, and fails as it likes."""
    return None if isinstance(value, torch.nn.Module) else value


class Strange:
    """An object that is nothing and has a long name."""

    def __repr__(self):
        return "strange\n" * 100


class Liar(Strange):
    def tolist(self):
        return "no list"


class Silent(Strange):
    def __repr__(self):
        raise TypeError("it has no name")


def values(rng: random.Random):
    """Anything."""
    numbers = [
        0,
        1,
        -1,
        2,
        7,
        8,
        24,
        39,
        40,
        10**6,
        10**6 + 1,
        2**31,
        2**63,
        -(2**63),
        10**30,
        10**400,
        10**5000,
        0.5,
        1.0,
        -0.5,
        1e-308,
        1e308,
    ]
    others = [
        math.nan,
        math.inf,
        -math.inf,
        None,
        True,
        False,
        "",
        "none",
        "dual",
        "1",
        "x" * 300,
        "\x1b[2J",
        "a\nb",
        b"abc",
        (),
        [],
        {},
        {1},
        1j,
    ]
    objects = [Strange(), Liar(), Silent(), Strategy, Settings, object(), torch.Tensor, iter(()), lambda *_: 1, random_model(0), ...]
    tensors = [torch.tensor(3), torch.ones(2, 3), torch.zeros(0), torch.arange(3), torch.tensor([math.nan]), torch.zeros(2, device="meta")]
    tensors += [
        torch.zeros(2, 0, dtype=torch.int64),
        torch.ones(2, 2, 2, dtype=torch.int64),
        torch.tensor([[5, 6], [7, 8]]),
        torch.ones(3) > 0,
    ]
    return rng.choice(rng.choice([numbers, numbers, others, objects, tensors]))


def token(rng: random.Random):
    return rng.randrange(EOS) if rng.random() < 0.995 else rng.choice([values(rng), EOS, MASK, VOCABULARY, -1])


def row(rng: random.Random):
    return [token(rng) for _ in range(rng.choice([1, 3, 6, 6, 6, 6, 6, 9, 9, 0, 600]))]


def prompts(rng: random.Random):
    """One prompt or several in one of many forms, most of them right."""
    rows = [row(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    forms: list[Callable] = [
        lambda: rows,
        lambda: rows[0],
        lambda: tuple(map(tuple, rows)),
        lambda: torch.randint(
            0, EOS, (rng.choice([1, 2]), rng.choice([0, 1, 5])), dtype=rng.choice([torch.int64, torch.int32, torch.uint8])
        ),
        lambda: [torch.randint(0, EOS, (4,)), [1, 2]],
        lambda: range(5),
        lambda: [rows, rows],
        lambda: [*rows, 3],
        lambda: [*rows, values(rng)],
        lambda: {"input_ids": rows},
        lambda: values(rng),
        lambda: [values(rng)],
    ]
    return rng.choice(forms[: rng.choice([4, 4, 4, 4, len(forms)])])()


def setting(rng: random.Random, option):
    """A value of a setting: mostly within its range."""
    if rng.random() < 0.15:
        return values(rng)
    if option.choices:
        return rng.choice(option.choices)
    low, high = option.range
    if option.kind is int:
        return int(min(high, low + rng.choice([0, 1, 2, 5, 16, 1000])))
    if option.kind is float:
        return min(float(high), low + rng.choice([0.0, 0.1, 0.5, 0.9, 1.0, 2.0, 1000.0]))
    return rng.choice([None, True, "1", ""]) if option.kind is not bool else rng.random() < 0.5


def shared_settings(rng: random.Random) -> dict:
    """Of all strategies; the lengths are small, so that a try is short."""
    own = {"gen_length": rng.choice([8, 16, 24]), "block_length": rng.choice([8, 4, 8])}
    for name in rng.sample(list(options(Settings)), rng.choice([0, 0, 0, 1, 1, 2])):
        if name != "compile":
            own[name] = setting(rng, options(Settings)[name])
    if isinstance(own["gen_length"], int) and 24 < own["gen_length"] <= 512:
        own["gen_length"] = 24
    return own


def named(rng: random.Random) -> tuple:
    name, own = rng.choice(CASES)
    own = dict(own)
    for key in rng.sample(list(options(STRATEGIES[name])), min(rng.choice([0, 0, 1, 1, 2]), len(options(STRATEGIES[name])))):
        own[key] = setting(rng, options(STRATEGIES[name])[key])
    if rng.random() < 0.05:
        own[rng.choice(["colour", "threshold", "guide", "x" * 300, "a\nb"])] = values(rng)
    return rng.choice([name] * 30 + [values(rng)]), own


def rule_of(rng: random.Random) -> Callable:
    """A rule, most of which do something that no rule should."""
    number, other = rng.random(), values(rng)

    def plain(scores, candidates, window):
        return scores.confidence >= number

    def changing(scores, candidates, window):
        rng.choice(
            [candidates, scores.token, scores.doubt, scores.margin, scores.standing, window.live, window.must, window.forwards]
        ).fill_(rng.choice([0, 1]))
        return scores.confidence >= number

    def odd(scores, candidates, window):
        sure = scores.confidence >= number
        return rng.choice([sure[0], sure.int(), sure.tolist(), sure[..., None], sure.flatten(), ~sure, sure & False, scores, other])

    def writing(scores, candidates, window):
        tokens = [scores.token, scores.token + rng.choice([0, 10, -5]), scores.token.float(), scores.token[0], other]
        tokens += [torch.full_like(scores.token, n) for n in (MASKED, MASK, 0, VOCABULARY, -2, 2**62)]
        return rng.choice([candidates, candidates | True, ~candidates, other]), rng.choice(tokens)

    def wavering(scores, candidates, window):
        back = torch.rand(candidates.shape) < number
        return candidates | back, torch.where(back & ~candidates, MASKED, scores.token)

    return rng.choice([plain, changing, odd, writing, wavering, has(revises=True)(wavering), quota, threshold_rule(0.5), factor_rule(1.0)])


def view_of(rng: random.Random) -> Callable:
    ends = [0, 1, 3, 8, 100, -1, None, 2.5]

    def odd(s, window):
        S, other = s.x.shape[1], values(rng)
        lows, highs = [*ends, window.start, window.start + 1], [*ends, window.end, window.end - 1, S, S + 1]
        slots = (
            [slice(rng.choice(lows), rng.choice(highs)) for _ in range(2)]
            + [slice(0, S)] * 4
            + [torch.arange(S), torch.arange(1, S), other]
        )
        at = Pass(rng.choice(slots), rng.choice([None, slice(0, S), *slots]))
        return rng.choice([at, at, at, at, at, at._replace(query=None), tuple(at), other])

    return rng.choice([odd, odd, full, cached(rng.choice(["prefix", "dual", "vicinity", "frozen"])), block_causal()])


def schedule_of(rng: random.Random) -> Callable:
    def odd(s):
        for _ in range(rng.choice([0, 1, 20, 10**9])):
            if not len(s.live):
                return
            low = rng.randrange(s.blocks)
            high = rng.randrange(low + 1, s.blocks + 1)
            s.opened.fill_(rng.choice([0, s.blocks, s.blocks]))
            must = rng.choice([s.masked().any(-1), s.masked().any(-1) & False])
            yield s.window(low, high, rng.choice([None, 0, 1]), 0, must[:, low:high], rng.choice([1, 2, 100]))

    return rng.choice([odd, serial, serial, pipeline(0.1, 0.95)])


def by_hand(rng: random.Random) -> tuple[Callable, dict]:
    """A Strategy, made when it is asked for: that may be refused, too."""
    own = {"rule": rule_of(rng), "view": rng.choice([full, full, view_of(rng)]), "schedule": rng.choice([serial, serial, schedule_of(rng)])}
    makers: list = [threshold_rule, cached, pipeline, Scores, Strange, Strange()]
    for name in rng.sample(["rule", "view", "schedule", "order", "forward", "choose", "search"], rng.choice([0, 0, 0, 1])):
        own[name] = rng.choice([*makers, none_of_torch(values(rng))]) if name != "order" else rng.choice([*ORDERS.values(), values(rng)])
    for name in rng.sample(["eos", "block_length", "fixed", "temperature", "shift"], rng.choice([0, 0, 1])):
        own[name] = rng.choice([values(rng), setting(rng, options(Strategy)[name])])
    return partial(Strategy, **own), own


def call(rng: random.Random) -> tuple[str, Callable[[], str | None]]:
    """What is called, and the call; it returns what is wrong with its answer, if anything is."""
    prompt, chosen = prompts(rng), shared_settings(rng)
    strategy, own = by_hand(rng) if rng.random() < 0.5 else named(rng)
    make = strategy if isinstance(strategy, partial) else lambda: strategy
    chosen |= {} if isinstance(strategy, partial) else own
    template = None
    if rng.random() < 0.15:
        template = rng.choice([[[MASK, 5, MASK]] * rng.choice([1, 2]), [MASK] * 9, [5, 6], prompts(rng)])
        if rng.random() < 0.8:
            chosen.pop("gen_length", None)
    model = rng.choice([random_model(rng.randrange(3))] * 40 + [values(rng)])
    torch.manual_seed(rng.randrange(1000))

    def work() -> str | None:
        if rng.random() < 0.2:
            steps = list(decode(model, prompt, make(), template, **chosen))
            return None if len(steps) and steps[-1].nfe else "a decode without a step"
        result = generate(model, prompt, make(), template, **chosen)
        answers = result.tokens[:, result.prompt_length :]
        if MASK in answers or not bool(((answers >= 0) & (answers < VOCABULARY)).all()):
            return f"an answer with what is none: {answers.tolist()}"
        if not math.isfinite(result.counters()["tokens_per_forward"]) or len(result.lengths) != len(answers):
            return "counters that count nothing"

    told = f"{described(own)} {described(chosen)} prompt={described(prompt)} template={described(template)}"
    return f"{'by hand' if isinstance(strategy, partial) else described(strategy)}: {told}"[:2000], work


def described(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key[:40]!r}={described(each)}" for key, each in value.items())
    try:
        return repr(value)[:200]
    except Exception as error:
        return f"<{type(value).__name__}: {error}>"
