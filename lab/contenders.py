"""Who is compared: a strategy with settings, written `fast-dllm:cache=dual:threshold=0.8`.

A strategy of one's own is FILE.py:NAME, with its settings behind it. One contender is no strategy:
the greedy oracle. What of weights/ belongs to the embedded model is never given to another in
silence: a contender that would need it is refused, with what it needs.
"""

import functools
import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dllm import Result, Settings, generate, plan
from kernels import Scores
from lab import command_line
from lab.journal import resolved
from load_weights import DTYPES, load_model, load_tokenizer
from strategies import STRATEGIES, Rule, Strategy, Window, options, rank, require

# The setting that trades accuracy for speed, and what --sweep tries; for llada, tokens a forward.
# SURE is for other strategies with a threshold, and for rules of one's own.
SURE = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
SWEEPS = {
    "llada": ("steps", (1, 2, 4, 8)),
    "fast-dllm": ("threshold", SURE),
    "localleap": ("relaxed_threshold", (0.9, 0.75, 0.65, 0.5, 0.3)),
    "streaming": ("confidence_alpha", (0.0, 0.3, 0.6, 0.9)),
    "d2f": ("skip_threshold", (0.99, 0.95, 0.9, 0.8, 0.7, 0.5)),
}


@dataclass(frozen=True)
class Contender:
    """A strategy with settings; `family` is what it was before a sweep gave it one more of them.

    model: in place of --model or the embedded one
    adapter: in place of --adapter or the embedded one; `none` takes the model as it is
    """

    strategy: str
    settings: dict
    label: str
    family: str
    generate: Callable[..., Result] = generate
    model: str | None = None
    adapter: str | None = None


def contender(text: str) -> Contender:
    """Read `strategy:setting=value:...`, whose strategy may be FILE.py:RULE, and among whose
    settings `model` and `adapter` may be.

    The greedy oracle is that of fast-dllm, which by default writes one token a forward.
    """
    name, *pairs = text.split(":")
    if name.endswith(".py") and pairs:
        name = f"{name}:{pairs.pop(0)}"
    if name == "greedy-oracle":
        of = contender(":".join(["fast-dllm:threshold=none", *pairs]))
        return replace(of, label=text, family=text, generate=greedy_oracle)
    command_line.check_name(name)
    takes, settings = options(Settings) | options(STRATEGIES[name]), {}
    for pair in pairs:
        setting, _, value = pair.partition("=")
        setting = setting.replace("-", "_")
        if setting not in takes and (meant := command_line.near(setting, takes)):
            raise ValueError(f"{text}: {name} has no setting {setting}{meant}")
        with suppress(KeyError, ValueError):  # so it does what stays a text
            value = command_line.read_value(takes[setting], value)
        settings[setting] = value
    weights = {name: settings.pop(name, None) for name in ("model", "adapter")}
    for of, value in weights.items():
        also = ", or none" * (of == "adapter")
        require(value != "", of, value, f"a folder, a Hugging Face id{also}")
    return Contender(name, settings, text, text, **weights)


def swept_setting(of: Contender) -> tuple[str, tuple]:
    """The setting that a sweep varies, and its values; of a rule of one's own, the first share."""
    if of.strategy in SWEEPS:
        return SWEEPS[of.strategy]
    takes = options(STRATEGIES[of.strategy])
    near_1 = lambda own: own.kind is float and own.default is not None and 0 <= own.default <= 1
    shares = [name for name, own in takes.items() if near_1(own)]
    shares = ["threshold"] if "threshold" in takes else shares if ":" in of.strategy else []
    return (shares[0], SURE) if shares else ("", ())


def sweep(of: Contender, gen_length: int) -> list[Contender]:
    """The same contender at several values of its main setting; itself if it has none."""
    name, values = swept_setting(of)
    rivals = set(STRATEGIES[of.strategy].either) - {name} if name else set()
    if not name or of.generate is not generate or rivals & set(of.settings):
        return [of]
    length = of.settings.get("gen_length", gen_length)
    values = [length // value for value in values] if name == "steps" else values
    parts = [part for part in of.label.split(":") if part.partition("=")[0] != name]
    label, own = ":".join(parts), [of.settings | {name: value} for value in values]
    own = [settings for settings in own if ":" not in of.strategy or builds(of.strategy, settings)]
    return [replace(of, settings=s, label=f"{label}:{name}={s[name]}", family=label) for s in own]


def builds(strategy: str, settings: dict) -> bool:
    """Whether a rule of one's own takes these settings, some of which may be those of all."""
    with suppress(ValueError):
        return bool(plan(strategy, settings))
    return False


def knowing(reference: Tensor) -> Rule:
    """Commit all tokens that are those of the reference, int64 [B, S]; or else write one of them.

    Learn2PD's "extremely greedy parallel" (arXiv 2509.25188), whose code pastes the block where it
    is stuck. To write the surest instead, though wrong, would lose the reference: what is right now
    may not be once the order has changed.
    """

    def rule(scores: Scores, candidates: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        final = reference[window.live, window.start : window.end].view_as(candidates)
        right = candidates & (scores.token == final)
        surest = candidates & (rank(scores.doubt, candidates) == 0)
        return torch.where(right.any(-1, keepdim=True), right, surest), final

    return rule


def with_oracle(model, prompts, strategy, **settings) -> tuple[Result, Strategy, dict]:
    """What the strategy decodes, and the strategy and settings that decode it again, knowing it."""
    reference = generate(model, prompts, strategy, **settings)
    known, chosen = plan(strategy, settings)
    known = replace(known, rule=knowing(reference.tokens))
    return reference, known, asdict(replace(chosen, steps=None))


def greedy_oracle(model, prompts, strategy, **settings) -> Result:
    """A strategy's tokens in few forwards, without those in which they were found out first.

    A line to compare with and no bound: which tokens are right depends on what was written before,
    and another order may need fewer forwards.
    """
    _, known, settings = with_oracle(model, prompts, strategy, **settings)
    return generate(model, prompts, known, **settings)


# --- those that are asked for ------------------------------------------------------------------


def chosen_contenders(args: Namespace) -> tuple[list[Contender], dict[str, str]]:
    """Those that are asked for, each once, checked before anything is loaded; and label -> why, of
    those left out where nobody has chosen."""
    given, left_out = args.strategies.split(","), {}
    if args.strategies == ready():
        lacks = {name: missing(args, contender(name)) for name in given}
        other = "of weights/ was made for another model"
        left_out = {name: f"its {own[0]} {other}" for name, own in lacks.items() if own}
    found = (contender(text) for text in given if text not in left_out)
    if args.sweep:
        found = (swept for each in found for swept in sweep(each, args.gen_length))
    contenders = list({each.label: each for each in found}.values())
    for c in contenders:
        planned(args, c)
        for name in missing(args, c):
            made = f"its {name} of weights/ was made for another model than {c.model or args.model}"
            if name != "model":
                none = f", or {name}=none" * (name == "adapter")
                raise ValueError(f"{c.label}: {made}: give {c.strategy}:{name}=FILE{none}")
            if not c.model:
                why = f"{c.label} needs a model trained for it, which --model is for the others"
                raise ValueError(f"{why}: give {c.strategy}:model=FOLDER")
    return contenders, left_out


def common(args: Namespace, c: Contender) -> dict:
    """What all contenders are given; the same end of an answer, or their forwards say little."""
    own = {} if args.eos == "own" else {"eos": args.eos}
    return {"gen_length": args.gen_length} | own


def planned(args: Namespace, c: Contender) -> tuple[Strategy, Settings]:
    """Its strategy and the settings of all, checked; a guide has only a name so far."""
    guide = dict.fromkeys({"guide"} & set(c.settings))
    return plan(c.strategy, common(args, c) | c.settings | guide)


def is_embedded(model: str | None) -> bool:
    return model is None or Path(model).resolve() == command_line.TINY.resolve()


def missing(args: Namespace, c: Contender) -> list[str]:
    """What of weights/ a strategy would take, though it has another model."""
    if is_embedded(c.model or args.model):
        return []
    given = c.settings | {"adapter": c.adapter or args.adapter}
    own = dict(command_line.embedded(c.strategy).items() - {("model", command_line.TINY)})
    if "model" in own:  # a model that is trained for it needs no adapter to be so
        own.pop("adapter", None)
    return sorted(name for name in own if given.get(name) is None)


@functools.cache
def ready() -> str:
    """The strategies that have all they need in weights/."""
    return ",".join(name for name in STRATEGIES if command_line.has_weights(name))


model_of, tokenizer_of = functools.cache(load_model), functools.cache(load_tokenizer)


def weights_of(c: Contender, args: Namespace) -> tuple:
    """Model and adapter: its own, those of the flags, or the embedded ones of its strategy."""
    named = c.model or args.model
    source, adapter = command_line.made_for(c.strategy)
    if named:
        source, adapter = named, adapter if is_embedded(named) else None
    return source, None if c.adapter == "none" else c.adapter or args.adapter or adapter


def load(c: Contender, args: Namespace) -> tuple:
    """Its model and tokenizer."""
    source, adapter = weights_of(c, args)
    model = model_of(source, adapter, args.device, DTYPES.get(args.dtype))
    command_line.use_threads(model)
    return model, tokenizer_of(source)


def opened(c: Contender, args: Namespace) -> tuple:
    """Its model, its tokenizer, and its settings with the guide of a strategy that has one."""
    own = common(args, c) | c.settings
    if guide := own.get("guide") or command_line.guide_for(c.strategy):
        own["guide"] = model_of(guide, None, args.device, DTYPES.get(args.dtype))
    return *load(c, args), own


def maker(args: Namespace, c: Contender, judged_by: dict) -> dict:
    """What makes its answers, and what judges them, as a line of a file says it."""
    made_by = {"contender": c.label, "strategy": c.strategy, "dtype": args.dtype}
    made_by["model"] = c.model or args.model or "embedded"
    given, adapter = c.adapter or args.adapter, weights_of(c, args)[1]
    made_by["adapter"] = given or (adapter and "embedded")
    made_by |= judged_by | resolved(c.strategy, c.settings, planned(args, c)[1])
    return json.loads(json.dumps(made_by, default=str))  # as it is read again
