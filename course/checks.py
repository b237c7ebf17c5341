"""Checks that exercises share: cases worked by hand, goldens, stories on the tiny model; how they
draw what is wrong.

Letters: N lines of cells, L cells in a line, as rules see them.
"""

import functools
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from course.grading import Part, Wrong
from dllm import Result, Step, decode, generate
from kernels import Scores
from lab.tasks import check, problems
from load_weights import load_model, load_tokenizer
from model import Pass
from strategies import Strategy, Window

ROOT = Path(__file__).parent.parent
CONFIDENCE = [0.95, 0.80, 0.60, 0.92, 0.70, 0.30, 0.76, 0.50]  # the example of docs/idea.md
# a story whose sums wait for each other
QUESTION = (
    "Tom has 12 boxes of 9 apples each. He buys 17 more and gives away 38. Then he eats 3 apples. "
    "How many apples does Tom have?"
)
WIDTH = 12  # cells that are drawn of a longer line


# --- drawing --------------------------------------------------------------------------------------


def drawn(yours: list, expected: list, first: int = 0, **facts: list) -> str:
    """A column for each cell, a line for each fact, then yours and what was expected, with a mark
    where they differ; of a long line the part around the first difference. first: of the numbers"""
    off = [a != b for a, b in zip(yours, expected)]
    start = max(0, min(off.index(True) - WIDTH // 2, len(off) - WIDTH)) if any(off) else 0
    cells = list(range(first, first + len(yours)))
    rows = {"cell": cells} | facts | {"yours": yours, "expected": expected}
    return columns(start=start, **rows | {"": ["^" if wrong else "" for wrong in off]})


def columns(start: int = 0, **rows: list) -> str:
    """Lines with a name each, whose cells stand under each other: WIDTH of them from `start` on."""
    rows = {name: list(map(shown, row[start : start + WIDTH])) for name, row in rows.items()}
    width = max(len(text) for row in rows.values() for text in row) + 1
    lines = (f"  {n:<10}" + "".join(text.rjust(width) for text in row) for n, row in rows.items())
    return "\n".join(line.rstrip() for line in lines)


def shown(value) -> str:
    """A cell: x is written, . is not."""
    if isinstance(value, bool):
        return "x" if value else "."
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- forms ----------------------------------------------------------------------------------------


def cells(result, scores: Scores, candidates: Tensor, *_) -> Tensor:
    """The form of a rule: bool [N, L], of which what is no candidate does not count."""
    right = isinstance(result, Tensor) and result.dtype is torch.bool
    if not right or result.shape != candidates.shape:
        raise Wrong(f"the rule returned {kind(result)}; expected {kind(candidates)}: True to write")
    return result & candidates


def a_pass(result, *_) -> Pass:
    """The form of a view: a Pass whose query and visible are slots, or None."""
    if not isinstance(result, Pass):
        raise Wrong(f"the view returned {kind(result)}; expected a Pass")
    for name in ("query", "visible"):
        slots = getattr(result, name)
        whole = isinstance(slots, slice) and None not in (slots.start, slots.stop)
        right = isinstance(slots, Tensor) and slots.dtype is torch.int64 and slots.dim() == 1
        if not (slots is None or whole or right):
            raise Wrong(f"`{name}` is {kind(slots)}: expected a slice with both ends or int64 [n]")
    return result


def kind(value) -> str:
    """What a value is: of a tensor dtype and shape."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "None: is a `return` missing?" if value is None else f"a {type(value).__name__}"


# --- cases worked by hand -------------------------------------------------------------------------


class Case(NamedTuple):
    """What a rule is asked; each list a line, and what is said where it errs."""

    says: str
    masked: list[str]  # "#" may be written, anything else is written already
    doubt: list[list[float]] | None = None  # default: that of the worked example, in each line
    settings: dict = {}  # of the rule
    window: dict = {}  # fields of the window that matter here
    expected: list[str] | None = None  # "x" is written; default what the project's rule says
    entropy: list[list[float]] | None = None  # default 1 - confidence

    def asked(self) -> tuple[Scores, Tensor, Window]:
        N, L = len(self.masked), len(self.masked[0])
        doubt = self.doubt or [[1 / c - 1 for c in CONFIDENCE]] * N
        doubt = torch.tensor(doubt)  # [N, L]
        confidence = 1 / (1 + doubt)
        entropy = torch.tensor(self.entropy) if self.entropy else 1 - confidence
        others = {"margin": confidence, "entropy": entropy}
        scores = Scores(torch.ones_like(doubt).long(), doubt, others.get)
        candidates = torch.tensor([[cell == "#" for cell in line] for line in self.masked])
        fields = {"start": 8, "end": 8 + L, "age": 1, "final": 8, "suffix": 0, "remaining": 4}
        fields |= {"must": candidates.any(-1, keepdim=True), "live": torch.arange(N)}
        fields |= {"forwards": torch.ones(N, dtype=torch.int64)}
        return scores, candidates, Window(**fields | self.window)


def by_hand(name: str, part: Part, cases: Iterable[Case]) -> Callable:
    """The check that a rule writes in each case what it should; the first line where it does not
    is drawn."""

    def check(mine: SimpleNamespace) -> None:
        for case in cases:
            scores, candidates, window = case.asked()
            if case.expected:
                expected = torch.tensor([[cell == "x" for cell in row] for row in case.expected])
            else:
                expected = part.own(*case.asked(), **case.settings) & candidates
            yours = getattr(mine, name)(scores, candidates, window, **case.settings)
            for n, (own, right) in enumerate(zip(yours.tolist(), expected.tolist())):
                if own != right:
                    raise Wrong(told(case, n, scores, candidates, window, own, right))

    return check


def told(case: Case, n: int, scores, candidates, window, yours, expected) -> str:
    """What a case says, what it was about, and its line n."""
    about = case.settings | {k: v for k, v in case.window.items() if not isinstance(v, Tensor)}
    about |= {"line": f"{n} of {len(case.masked)}"} if len(case.masked) > 1 else {}
    about = ", ".join(f"{name} {value}" for name, value in about.items())
    facts = {"doubt": scores.doubt[n].tolist(), "confidence": scores.confidence[n].tolist()}
    if not case.doubt:
        facts = {"confidence": [round(c, 4) for c in facts["confidence"]]}
    facts |= {"entropy": case.entropy[n]} if case.entropy else {}
    facts["masked"] = ["#" if cell else "-" for cell in candidates[n].tolist()]
    return f"{case.says}{f' ({about})' if about else ''}\n\n{drawn(yours, expected, **facts)}"


def on_canvas(slots, count: int) -> list:
    """Which of the canvas's slots these are; out of order, or beyond its end, it is Wrong."""
    if slots is None:
        return [False] * count
    listed = list(range(slots.start, slots.stop)) if isinstance(slots, slice) else slots.tolist()
    if listed != sorted(set(listed)) or (listed and not 0 <= listed[0] <= listed[-1] < count):
        raise Wrong(f"slots {listed} of a canvas of {count}: expected each once, in order")
    return [slot in listed for slot in range(count)]


# --- the real loop --------------------------------------------------------------------------------

Build = Callable[..., Strategy]  # (parts, **the strategy's own settings)


def projects(parts: dict[str, Part]) -> SimpleNamespace:
    return SimpleNamespace(**{name: part.own for name, part in parts.items()})


@functools.cache
def random_model(folder: str):
    return load_model(ROOT / "tests" / "goldens" / folder, device="cpu")


@functools.cache
def tiny() -> tuple:
    return load_model(ROOT / "weights" / "tiny", device="cpu"), load_tokenizer(
        ROOT / "weights/tiny"
    )


@functools.cache
def student() -> tuple:
    """D2F's student of the tiny model."""
    return load_model(ROOT / "weights/tiny", ROOT / "weights/tiny-d2f", "cpu"), tiny()[1]


COMMON = ("gen_length", "block_length", "steps", "temperature", "cfg_scale")


def split(settings: dict) -> tuple[dict, dict]:
    """Settings of a strategy, and of every decode."""
    common = {name: settings[name] for name in settings if name in COMMON}
    return {name: settings[name] for name in settings if name not in common}, common


def golden(parts: dict[str, Part], build: Build, system: str, like: dict) -> Callable:
    """The check that cases of tests/goldens come out token for token, in as many forwards, with the
    student's part in the real loop. like: settings that they have, a name to possible values"""

    def check(mine: SimpleNamespace) -> None:
        for folder in "ac":
            for case in map(json.loads, (ROOT / f"tests/goldens/{folder}/cases.jsonl").open()):
                own, common = split(case["settings"])
                fits = all(case["settings"].get(name) in like[name] for name in like)
                if case["strategy"] != system or not fits or common["gen_length"] > 48:
                    continue
                both = [build(p, **own) for p in (mine, projects(parts))]
                model, prompt = random_model(folder), case["prompt"]
                result = generate(model, prompt, both[0], **common)
                same = result.tokens[0].tolist()[: len(case["tokens"])] == case["tokens"]
                if not (same and result.nfe == case["nfe"]):
                    settings = ", ".join(f"{k} {v}" for k, v in case["settings"].items())
                    raise Wrong(
                        f"a decode of {settings} took {result.nfe} forwards, the authors' code "
                        f"{case['nfe']}.\n{first_difference(model, prompt, *both, **common)}"
                    )

    return check


def first_difference(model, prompt, mine: Strategy, own: Strategy, **common) -> str:
    """The first forward in which two strategies write other cells, or compute others, drawn."""
    for a, b in zip(decode(model, prompt, mine, **common), decode(model, prompt, own, **common)):
        differ = (a.commit != b.commit) | (a.token != b.token) & b.commit
        if a.rows != b.rows or a.commit.shape != b.commit.shape:
            return f"In forward {a.nfe} yours computed {a.rows} rows, where {b.rows} do."
        if differ.any():
            row = int(differ.any(-1).nonzero()[0])
            return f"In forward {a.nfe} they part:\n\n{written(a, b, row)}"
    return "Every forward that both have is the same: one of them ends earlier."


def written(a: Step, b: Step, row: int) -> str:
    """What two steps on the same canvas wrote in a row of the batch."""
    facts = {"confidence": [round(c, 3) for c in b.scores.confidence[row].tolist()]}
    facts["doubt"] = [float(f"{doubt:.1g}") for doubt in b.scores.doubt[row].tolist()]
    facts["masked"] = ["#" if cell else "-" for cell in b.candidates[row].tolist()]
    yours, expected = (step.commit[row].tolist() for step in (a, b))
    if yours == expected:  # the same cells, but other tokens
        yours, expected = (step.token[row].tolist() for step in (a, b))
    return drawn(yours, expected, first=b.window.start, **facts)


def stories(parts: dict[str, Part], build: Build, limit: int = 12, model=tiny, **settings):
    """The check on held-out stories with the tiny model, as a batch of prompts of other lengths:
    the same answers as with the project's part, in as many forwards and rows. Returns the score."""
    own, common = split({"gen_length": 64} | settings)

    @functools.cache
    def reference() -> Result:
        return generate(model()[0], prompts(limit), build(projects(parts), **own), **common)

    def check_stories(mine: SimpleNamespace) -> dict:
        (network, tokenizer), strategy = model(), build(mine, **own)
        both = [generate(network, prompts(limit), strategy, **common), reference()]
        right, chosen = [], told_stories(limit)
        for result in both:
            texts = [tokenizer.decode(result.answer(row), False) for row in range(limit)]
            right.append(sum(map(check, chosen, texts)))
        score = {"right": right, "of": limit}
        score["forwards"] = [round(sum(result.forwards) / limit, 2) for result in both]
        score["rows"] = [round(result.rows / limit) for result in both]
        if not both[0].tokens.equal(both[1].tokens) or both[0].rows != both[1].rows:
            project = build(projects(parts), **own)
            apart = first_difference(network, prompts(limit), strategy, project, **common)
            raise Wrong(f"{limit} stories at once, {scored(score)}.\n{apart}")
        return score | {"answer": tokenizer.decode(both[0].answer())}

    return check_stories


def scored(score: dict) -> str:
    """A score in words, the reference's in brackets."""
    texts = {name: "{} ({})".format(*v) for name, v in score.items() if isinstance(v, list)}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


@functools.cache
def told_stories(limit: int) -> list:
    return list(islice(problems(1234, "two-step", held_out=True), limit))


@functools.cache
def prompts(limit: int) -> list[list[int]]:
    encode = tiny()[1].encode_chat
    return [encode([{"role": "user", "content": p.prompt}]) for p in told_stories(limit)]
