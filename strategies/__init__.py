"""What a strategy is made of, the registry of those with a name, and the checks of their settings.

Each system is a file in this folder: its paper, its settings, its part, and a builder that puts the
part together with parts of others. Delete the file and the system is gone; a file that is put here
is found. No system imports the decoder (dllm.py), which hands its Canvas to the parts.

Letters: B batch, b its unfinished rows, S canvas, L block length, n blocks in the window,
N = b * n, V vocabulary, C width.
"""

import copy
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import torch
from torch import Tensor

from checks import TAKES, brief, called, check_choice, check_iterator, check_part, require
from kernels import Scores
from model import LLaDA, Pass, Slots

# the types of settings that many have, each with its range
MOST = 10**6  # of any number without a range of its own
Count = Annotated[int, (1, MOST)]
Share = Annotated[float, (0, 1)]
Sure = Annotated[float, (0, 2)]  # a confidence that is enough; above 1 none is
EosName = Literal["fill", "stop", "suppress", "defer"]


@dataclass(frozen=True)
class Window:
    """What a schedule opens for one forward: the slots start .. end, n blocks of L."""

    start: int
    end: int
    age: int | None  # forwards since the block was entered; None where several blocks are open
    final: int  # the slots before it hold keys and values that were computed of final tokens
    suffix: int  # slots of the canvas behind `end`
    remaining: int | None  # forwards that a quota has for this block, this one included; or None
    must: Tensor  # bool [b, n]: blocks in which a forward commits at least one token
    live: Tensor  # int64 [b]: the unfinished rows of the batch
    forwards: Tensor  # int64 [b]: so far, those in which something could be written in each row
    own: Tensor | None = None  # bool [b, n * L]: the cells of the window that no template gave
    # rows of the batch, finished ones too: what a part remembers has a line for each; `live` picks
    batch: int = 1


# --- the kinds of parts; `s` is the Canvas of dllm.py ---------------------------------------------

Schedule = Callable[[Any], Iterator[Window]]  # (s)

# (s, window) -> what the model is to compute. Without visible slots nothing is cached.
View = Callable[[Any, Window], Pass]

# (scores, candidates, window), the two former [N, L], one line for each block of each row -> which
# to write, bool [N, L]. A rule may accept nothing: then the surest candidate of each block that
# must move is written. A rule that writes to written cells, too, returns (cells to write, what to
# write, int64 [N, L]), where MASKED takes a token back.
Rule = Callable[[Scores, Tensor, Window], "Tensor | tuple[Tensor, Tensor]"]
MASKED = -1

# (s, window, at) -> logits [b, n * L, V]: how they come about. By default s.forward.
Forward = Callable[[Any, Window, Pass], Tensor]

# (s, window, scores, candidates, logits, noise or None) -> (which cells to write, bool [b, n * L],
# with what, int64 [b, n * L]). By default `choose`.
Choose = Callable[..., tuple[Tensor, Tensor]]

# (s, iterator of Step) -> the same: changes the rows of the canvas between two of them.
Search = Callable[[Any, Iterator], Iterator]


KINDS = ("rule", "schedule", "view", "forward", "choose", "search")
SEEING = KINDS[2:]  # which see rows; a rule and a schedule see cells


class Part:
    """What a part may say of itself, by attributes of its class, or of a function by `has`; here is
    what holds where it says nothing. A part may have another `inside` it."""

    quota = False  # of a rule: it shares out `steps` among the tokens; otherwise they are a cap
    revises = False  # of a rule: it takes tokens back, or writes others in their place
    masks_only = False  # of a rule: it reads only what the scores say of candidates
    # of a view: the forward of a block, from 0, since which each slot that it shows is computed
    # anew in every forward, or kept; 0 if it asks no window for its age, inf if it never settles
    settled: float = 1
    shifts = False  # of a view, forward, choose or search: made for models with a shift, too
    # of such a view: only a block's first forward computes the slot before it, which predicts the
    # first cell; so that is what it writes
    leads = False
    layers = False  # of a view: it runs layers in a way of its own, which is not compiled
    # of a schedule or view: what it must know on the host before a forward, (s) -> int64 [b, k]. It
    # comes along with the one wait, once a forward, as s.told of this function: b lists of k
    asks = None
    cuts = False  # of a schedule: under eos="stop" all behind an end is EOS at once, open or not
    trajectories = 1  # of a search: rows for each prompt, among which it looks

    def check(strategy: "Strategy") -> None:
        """Raise ValueError if the part does not go with the others of this strategy."""

    def fits(s) -> None:
        """Raise ValueError if the part does not go with this canvas or its model."""

    def memory(s) -> int:
        """Bytes for each row of the canvas, of what the part keeps."""
        return 0


def has(**own) -> Callable:
    """A decorator: give a function these attributes of Part."""

    def mark(part):
        vars(part).update(own)
        return part

    return mark


def trait(part, name: str):
    return getattr(part, name, getattr(Part, name))


def fresh(part):
    """A copy of a part, with those inside it: what parts remember is one decode's."""
    part = copy.copy(part)
    if getattr(part, "inside", None):
        part.inside = fresh(part.inside)
    return part


@dataclass(frozen=True)
class Strategy:
    """A way to decode. Builders make the named ones; others can be put together by hand."""

    rule: Rule
    view: View
    schedule: Schedule
    eos: EosName = "fill"
    # which tokens are the surest: (scores, generator) -> a doubt for every cell, like scores.doubt
    order: Callable[[Scores, torch.Generator], Tensor] | None = None
    forward: Forward | None = None
    choose: Choose | None = None
    search: Search | None = None
    block_length: Count | None = 32  # where the caller names none; None for gen_length
    fixed: bool = False  # whether block_length is the only one that will do
    temperature: float = 0.0  # where the caller names none
    shift: Annotated[int, (0, 1)] = 0  # 1 for logits that say what comes next on any model
    shifted: "Strategy | None" = None  # what takes its place on a model with a shift

    def __post_init__(self):
        for kind in TAKES:
            check_part(kind, getattr(self, kind))
        own = ("eos", "block_length", "fixed", "temperature", "shift")
        check_settings(Strategy, {name: getattr(self, name) for name in own})
        if trait(self.view, "settled") == inf and trait(self.rule, "revises"):
            raise ValueError("a rule that changes tokens contradicts a cache that keeps theirs")
        for part in self.parts():
            trait(part, "check")(self)

    def parts(self) -> Iterator:
        """Its parts, and those inside them."""
        for part in [getattr(self, kind) for kind in KINDS]:
            while part is not None:
                yield part
                part = getattr(part, "inside", None)

    def made_for(self, shift: int) -> "Strategy":
        """A copy with parts of its own, for a model of this shift; ValueError if there is none."""
        if shift and self.shifted:
            return self.shifted.made_for(shift)
        parts = {kind: getattr(self, kind) for kind in KINDS}
        for kind, part in parts.items() if shift else ():
            if kind in SEEING and part and not trait(part, "shifts") or trait(part, "revises"):
                model = "a model whose logits predict the token after theirs, as Dream's do"
                raise ValueError(f"{called(kind, part)} is not made for {model}")
        return replace(self, **{kind: fresh(part) for kind, part in parts.items()})


def rank(doubt: Tensor, candidates: Tensor) -> Tensor:
    """Place of each cell among the candidates of its line, int64 [N, L]: 0 for the least doubt.

    Ties go by position; what is no candidate comes last.
    """
    order = doubt.masked_fill(~candidates, inf).argsort(dim=-1, stable=True)
    return order.argsort(dim=-1)


def choose(s, window: Window, scores: Scores, candidates: Tensor, *_) -> tuple[Tensor, Tensor]:
    """What the rule says, and the surest candidate of a block that must move and has none."""
    shape, must = candidates.shape, window.must.reshape(-1, 1)  # [b, n * L], [N, 1]
    scores = scores.each(lambda t: t.reshape(len(must), -1))
    candidates = candidates.reshape(len(must), -1)
    rule = s.strategy.rule
    chosen = rule(scores, candidates.clone(), window)  # a copy: a rule may change it
    check_choice("rule", rule, chosen, candidates)
    commit, token = chosen if isinstance(chosen, tuple) else (chosen & candidates, scores.token)
    stuck = must & ~(commit & candidates).any(-1, keepdim=True)  # [N, 1]
    commit = commit | stuck & candidates & (rank(scores.doubt, candidates) == 0)
    return commit.view(shape), token.reshape(shape)


def windows(s) -> Iterator[Window]:
    """What the schedule opens."""
    schedule = s.strategy.schedule
    opened = schedule(s)
    check_iterator("schedule", schedule, opened)
    for window in opened:
        name = f"what {called('schedule', schedule)} opens"
        require(isinstance(window, Window), name, window, "a Window")
        yield window


def scored(at: Pass, window: Window, shift: int = 0) -> Slots:
    """Which rows of a query get logits: those that say something about the window's slots.

    shift: how many slots before its own the logits of a token stand; for a first that is missing
        (of a view that leads) another stands in, of which nobody asks
    """
    start, end, query = window.start - shift, window.end - shift, at.query
    if isinstance(query, slice):
        start, end = start - query.start, end - query.start
        rows = torch.arange(start, end, device=window.live.device)
        return slice(start, end) if start >= 0 else rows.clamp(min=0)
    if at.own is None:  # no gaps: no wait for the device
        return torch.searchsorted(query, torch.arange(start, end, device=query.device))
    return ((query >= start) & (query < end)).nonzero()[:, 0]


# --- the registry ---------------------------------------------------------------------------------

STRATEGIES: dict[str, Callable[..., Strategy]] = {}
TAKEN: set[str] = set()  # names of settings that every strategy has

# The order in which they are listed; a file that is not named here comes after them.
KNOWN = (
    "llada", "fast_dllm", "localleap", "streaming", "d2f", "dream", "ar", "hierarchy", "saber",
    "editing", "conv", "learn2pd", "credit", "smoothing", "dinfer", "dkv", "sparse", "dllm_cache",
    "mars", "d3llm", "dllm_var", "freedave", "spiffy", "swift", "apd", "guided", "prism", "eb",
    "frechet", "klass", "wino", "dus", "spaced", "pc", "p2", "remdm", "prophet",
    "sdar", "fast_dllm_v2", "nbdiff", "s2d2", "wedlm", "card", "rcd",
)  # fmt: skip


def named(name: str, either: tuple[str, ...] = (), **embedded: str) -> Callable:
    """Enter a builder into STRATEGIES. Its keyword arguments are the settings: an annotation says
    the type and, in a note, the range or the meaning; so does a line `name: meaning` of the
    docstring, which indented lines go on. either: settings of which a caller may give one.
    embedded: of model, adapter and settings, those in weights/ that it takes if none is given."""

    def enter(builder: Callable[..., Strategy]) -> Callable[..., Strategy]:
        for option in options(builder).values():
            what = f"the setting {option.name} of {name}"
            if option.name in TAKEN:
                raise ValueError(f"{what} is one that every strategy has: choose another name")
            if option.default is inspect.Parameter.empty:
                raise ValueError(f"{what} has no default")
            if option.kind not in (int, float, bool, str, LLaDA):
                raise ValueError(f"{what} is no int, float, bool, text or one of a Literal")
            option.check(option.default)
        if STRATEGIES.setdefault(name, builder) is not builder:
            raise ValueError(f"there is a strategy {name} already")
        return has(either=either, embedded=embedded)(builder)

    return enter


def discover() -> None:
    """Import every file of this folder, so that its builders enter themselves; one that takes a
    part from a file that is not there, or fails, is left out, with a line on stderr."""
    there = {module.name for module in pkgutil.iter_modules(__path__)}
    files = [*(name for name in KNOWN if name in there), *sorted(there - set(KNOWN))]
    for name in files:
        try:
            importlib.import_module(f"{__name__}.{name}")
        except (Exception, SystemExit) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"strategies/{name}.py is left out: {why}", file=sys.stderr)
        for key, builder in list(STRATEGIES.items()):
            if builder.__module__ not in sys.modules:  # it, or what it imports, has failed
                del STRATEGIES[key]
            elif builder.__module__ == f"{__name__}.{name}":  # in this order
                STRATEGIES[key] = STRATEGIES.pop(key)


def build(name: str, **given) -> Strategy:
    """The strategy of this name; ValueError if it, or a setting, is unknown or out of range."""
    if name not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ValueError(f"unknown strategy {brief(name)}: choose one of {known}")
    builder = STRATEGIES[name]
    for setting in given:
        if setting not in options(builder):
            takers = [other for other in STRATEGIES if setting in options(STRATEGIES[other])]
            own = f"it takes {', '.join(options(builder)) or 'none'}"
            hint = f"that is a setting of {', '.join(takers)}; " if takers else ""
            raise ValueError(f"strategy {name} has no setting {brief(setting)[1:-1]}: {hint}{own}")
    check_settings(builder, given)
    both = [f"{each}={given[each]:g}" for each in builder.either if given.get(each) is not None]
    if len(both) > 1:
        raise ValueError(f"{' and '.join(both)} are two rules for the same choice: give one")
    return builder(**given)


# --- settings, as the functions that take them declare them ---------------------------------------


class Option(NamedTuple):
    """A setting: the command line, the checks and the tables of the docs are made from these."""

    name: str
    kind: type  # int, float, bool, str or, for a second model, LLaDA
    choices: tuple  # of a Literal, else empty
    range: tuple[float, float]  # of a number: the least and the largest
    optional: bool  # None is a value, too
    default: object
    meaning: str

    def check(self, value) -> None:
        """Raise ValueError if the value is of another type, or outside the range or choices."""
        if value is None and self.optional:
            return
        if self.choices:
            choices = "one of " + ", ".join(self.choices)
            known = isinstance(value, str) and value in self.choices
            return require(known, self.name, value, choices)
        right = isinstance(value, (int, float) if self.kind is float else self.kind)
        right &= isinstance(value, bool) == (self.kind is bool)
        require(right, self.name, value, f"a value of type {self.kind.__name__}")
        if self.kind in (int, float):
            low, high = self.range
            free = high == MOST and not value > high
            valid = f"at least {low}" if free else f"between {low} and {high}"
            valid = "between 0 and 1, or 2 for never" if self.range == (0, 2) else valid
            require(low <= value <= high, self.name, value, valid)


@functools.cache
def options(function: Callable) -> dict[str, Option]:
    """The keyword arguments of a builder or a dataclass, which has the meanings of its bases, too.

    A number without a range is at least 0, and a setting without a type has its default's.
    """
    texts = [inspect.cleandoc(f.__doc__ or "") for f in getattr(function, "__mro__", [function])]
    meanings = re.findall(r"^(\w+): (.+(?:\n +.+)*)$", "\n".join(texts), re.MULTILINE)
    meanings = {name: " ".join(meaning.split()) for name, meaning in meanings}
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        unsaid = parameter.annotation is parameter.empty
        outer, *notes = noted(type(parameter.default) if unsaid else parameter.annotation)
        kinds = get_args(outer) if get_origin(outer) in (Union, UnionType) else (outer,)
        kind, *more = noted(kinds[0])
        limits = next((note for note in notes + more if isinstance(note, tuple)), (0, MOST))
        meaning = meanings.get(name, " ".join(note for note in notes if isinstance(note, str)))
        choices, optional = get_args(kind), NoneType in kinds
        kind = str if choices else kind
        found[name] = Option(name, kind, choices, limits, optional, parameter.default, meaning)
    return found


def noted(annotation) -> tuple:
    """A type, and what is noted of it."""
    return get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)


def check_settings(function: Callable, given: dict) -> None:
    """Refuse values of another type than the function declares, or outside what it allows."""
    for name, value in given.items():
        options(function)[name].check(value)
