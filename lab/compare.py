"""Strategies side by side on problems whose answers can be checked: `python -m lab.bench compare` and `delayed`.

A contender is a strategy with settings, written `fast-dllm:cache=dual:threshold=0.8`. All contenders decode the same held-out problems in
turn, batch by batch, so that their ratios hold on a machine whose speed drifts. One contender is no strategy: the greedy oracle.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dllm import Result, Rule, Scores, Settings, Strategy, Window, decode, find_builder, generate, plan, rank
from lab import parallel
from lab.command_line import load_guide, made_for, use_threads
from lab.report import about, table
from lab.tasks import TASKS, Problem, check, problems
from load_weights import DTYPES, load_model, load_tokenizer
from options import options

STORIES = ("one-step", "two-step", "three-step", "four-step")

# The setting that trades accuracy for speed, and the values that --sweep tries; for llada, tokens a forward.
SWEEPS = {
    "llada": ("steps", (1, 2, 4, 8)),
    "fast-dllm": ("threshold", (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)),
    "localleap": ("relaxed_threshold", (0.9, 0.75, 0.65, 0.5, 0.3)),
    "streaming": ("confidence_alpha", (0.0, 0.3, 0.6, 0.9)),
    "d2f": ("skip_threshold", (0.99, 0.95, 0.9, 0.8, 0.7, 0.5)),
}


@dataclass(frozen=True)
class Contender:
    """A strategy with settings of its own; `family` is what it was before a sweep gave it one more."""

    strategy: str
    settings: dict
    label: str
    family: str
    generate: Callable[..., Result] = generate


def contender(text: str) -> Contender:
    """Read `strategy:setting=value:...`; ValueError naming what is unknown. The strategy may be FILE.py:RULE, or the greedy oracle."""
    name, *pairs = text.split(":")
    if name.endswith(".py") and pairs:
        name = f"{name}:{pairs.pop(0)}"
    if name == "greedy-oracle":  # of what fast-dllm decodes with the same settings, by default one token a forward
        return replace(contender(":".join(["fast-dllm:threshold=none", *pairs])), label=text, family=text, generate=greedy_oracle)
    takes, settings = options(Settings) | options(find_builder(name)), {}
    takes.pop("guide", None)  # which is the embedded one
    for pair in pairs:
        setting, equals, value = pair.partition("=")
        setting = setting.replace("-", "_")
        if not equals or setting not in takes:
            raise ValueError(f"{pair!r} in {text!r} is no setting=value of {name}: it takes {', '.join(takes)}")
        try:
            settings[setting] = takes[setting].read(value)
        except ValueError:
            raise ValueError(f"{setting} is {value!r} in {text!r}, expected a value of type {takes[setting].kind.__name__}") from None
    return Contender(name, settings, text, text)


def knowing(reference: Tensor) -> Rule:
    """Commit every token that is the reference's, int64 [B, S]; where none is, write the reference's at the surest position.

    Learn2PD's "extremely greedy parallel" (arXiv 2509.25188), whose code pastes the block where it is stuck. Writing what is wrong instead,
    because it is the surest, would lose the reference: what is right now may not be once the order has changed.
    """

    def rule(scores: Scores, candidates: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        final = reference[window.live, window.start : window.end].view_as(candidates)
        right = candidates & (scores.token == final)
        surest = candidates & (rank(scores.doubt, candidates) == 0)
        return torch.where(right.any(-1, keepdim=True), right, surest), final

    return rule


def with_oracle(model, prompts, strategy: str | Strategy, **settings) -> tuple[Result, Strategy, dict]:
    """What the strategy decodes, and the strategy and settings that decode the same again, knowing it."""
    reference = generate(model, prompts, strategy, **settings)
    known, chosen = plan(strategy, settings)
    return reference, replace(known, rule=knowing(reference.tokens)), asdict(replace(chosen, steps=None))


def greedy_oracle(model, prompts, strategy: str | Strategy, **settings) -> Result:
    """The tokens of a strategy in about as few forwards as any order allows, counted without those in which they were found out first.

    A line to compare with and no bound: which tokens are right depends on what was written before, and another order may need fewer.
    """
    _, known, settings = with_oracle(model, prompts, strategy, **settings)
    return generate(model, prompts, known, **settings)


def sweep(of: Contender, gen_length: int) -> list[Contender]:
    """The same contender at several values of its main setting; itself if it has none."""
    if of.strategy not in SWEEPS or of.generate is not generate:
        return [of]
    name, values = SWEEPS[of.strategy]
    values = [gen_length // value for value in values] if name == "steps" else values
    return [replace(of, settings=of.settings | {name: value}, label=f"{of.label}:{name}={value}") for value in values]


# --- decoding and counting ---------------------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """What one contender did with the problems so far."""

    right: int = 0
    problems: int = 0
    tokens: int = 0  # before the first EOS: padding never counts as speed
    forwards: int = 0  # summed over the problems, as if each had been decoded alone
    rows: int = 0
    seconds: float = 0.0
    local: float = 0.0  # AR-ness, summed over the problems
    overall: float = 0.0

    def add(self, result, right: int) -> None:
        self.right, self.problems = self.right + right, self.problems + len(result.lengths)
        self.tokens, self.forwards = self.tokens + sum(result.lengths), self.forwards + sum(result.forwards)
        self.rows, self.seconds = self.rows + result.rows, self.seconds + result.seconds
        local, overall = result.ar_ness()
        self.local, self.overall = self.local + local * len(result.lengths), self.overall + overall * len(result.lengths)

    def __add__(self, other: "Score") -> "Score":
        return Score(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    def figures(self, baseline: "Score | None") -> dict[str, float]:
        """Means over the problems; accuracy with the ends of its 95 % Wilson interval; the speed-up over the baseline of the same run."""
        n, p, z = self.problems, self.right / self.problems, 1.96
        middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        found = {"accuracy": p, "low": middle - half, "high": middle + half, "forwards": self.forwards / n, "rows": self.rows / n}
        found |= {"tokens_per_forward": self.tokens / self.forwards, "tokens_per_second": self.tokens / self.seconds}
        found |= {"ar_ness_local": self.local / n, "ar_ness_global": self.overall / n}
        return found | ({"speed_up": found["tokens_per_second"] / (baseline.tokens / baseline.seconds)} if baseline else {})


def encode(tokenizer, chosen: list[Problem]) -> list[list[int]]:
    return [tokenizer.encode_chat([{"role": "user", "content": p.prompt}]) for p in chosen]


def answer(model, tokenizer, chosen: list[Problem], strategy: str, generate: Callable[..., Result] = generate, **settings):
    """Decode a batch of problems in the chat template; returns the Result and how many answers the checker accepts."""
    result = generate(model, encode(tokenizer, chosen), strategy, **settings)
    texts = [tokenizer.decode(result.answer(row), skip_special_tokens=False) for row in range(len(chosen))]
    return result, sum(map(check, chosen, texts))


def batches(args: argparse.Namespace, task: str) -> Iterator[list[Problem]]:
    stream = problems(args.seed, task, held_out=True)
    for first in range(0, args.limit, args.batch_size):
        yield list(islice(stream, min(args.batch_size, args.limit - first)))


def loader(args: argparse.Namespace):
    """A function from a strategy's name to (model, tokenizer): those of the flags, else the embedded ones made for it, each loaded once."""

    @cache
    def load(model: str, adapter: str | None):
        loaded = load_model(model, adapter, args.device, DTYPES.get(args.dtype))
        use_threads(loaded)
        return loaded, load_tokenizer(model)

    def of(strategy: str):
        model, adapter = (args.model, None) if args.model else made_for(strategy)
        return load(str(model), args.adapter or (adapter and str(adapter)))

    return of


def tasks_of(text: str | None) -> list[str]:
    """The tasks that --task names: some, `stories`, or all."""
    names = list(STORIES) if text == "stories" else text.split(",") if text else list(TASKS)
    if unknown := [name for name in names if name not in TASKS]:
        raise ValueError(f"unknown task {unknown[0]!r}: choose stories, or of {', '.join(TASKS)}")
    return names


# --- compare -----------------------------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> None:
    """Decode the same held-out problems with every contender in turn, and print accuracy and cost."""
    contenders = [contender(text) for text in dict.fromkeys(args.strategies.split(","))]
    if args.sweep:
        contenders = [swept for each in contenders for swept in sweep(each, args.gen_length)]
    for c in contenders:
        plan(c.strategy, {"gen_length": args.gen_length} | c.settings)  # refuses before anything is loaded
    tasks, plot, load = tasks_of(args.task), plotter(args.plot), loader(args)
    models = [load(c.strategy)[0] for c in contenders]
    guides = {c.strategy: load_guide(c.strategy, None, models[0].device, models[0].dtype) for c in contenders}
    scores = {task: {c.label: Score() for c in contenders} for task in tasks}
    with tqdm(total=args.limit * len(tasks) * len(contenders), unit="problem", leave=False) as bar:
        for task in tasks:
            for chosen in islice(batches(args, task), parallel.rank(), None, parallel.processes()):
                for c in contenders:
                    settings = {"gen_length": args.gen_length} | c.settings | guides[c.strategy]
                    scores[task][c.label].add(*answer(*load(c.strategy), chosen, c.strategy, c.generate, **settings))
                    bar.update(len(chosen) * parallel.processes())
    everyone = parallel.gathered(scores)
    scores = {task: {label: sum((each[task][label] for each in everyone), Score()) for label in scores[task]} for task in tasks}
    scores["all"] = {c.label: sum((scores[task][c.label] for task in tasks), Score()) for c in contenders}
    base = next((c.label for c in contenders if c.strategy == "llada"), "")
    figures = {task: {label: score.figures(of_task.get(base)) for label, score in of_task.items()} for task, of_task in scores.items()}
    if plot:
        plot([(c, figures["all"][c.label]) for c in contenders])
    if args.json:
        print(json.dumps({"settings": vars(args), "machine": about(models[0]), "figures": figures}))
        return
    print(about(models[0]) + ".")
    print(f"{args.limit} held-out problems of each task, seed {args.seed}, gen_length {args.gen_length}, batches of {args.batch_size}.\n")
    print(cost_table(figures["all"]))
    if len(tasks) > 1:
        rows = [[label, *(f"{figures[task][label]['accuracy']:.1%}" for task in tasks)] for label in figures["all"]]
        print("\n" + table(["right", *tasks], rows))


def cost_table(figures: dict[str, dict[str, float]]) -> str:
    header = ["strategy", "right", "95 % interval", "forwards", "rows", "tokens/forward", "tokens/s", "speed-up", "AR-ness"]
    rows = []
    for label, f in figures.items():
        interval, speed_up = f"{f['low']:.1%} - {f['high']:.1%}", f"{f['speed_up']:.1f}x" if "speed_up" in f else ""
        cost = [f"{f['forwards']:.1f}", f"{f['rows']:.0f}", f"{f['tokens_per_forward']:.2f}", f"{f['tokens_per_second']:.0f}", speed_up]
        cost.append(f"{f['ar_ness_local']:.2f} {f['ar_ness_global']:.2f}")
        rows.append([label, f"{f['accuracy']:.1%}", interval, *cost])
    return table(header, rows)


def plotter(file: str | None):
    """A function that draws accuracy against tokens per forward into the file; None if there is none. Errors come now, not after the work."""
    if file is None:
        return None
    if not file.endswith((".png", ".svg")):
        raise ValueError(f"--plot is {file!r}, expected a name that ends in .png or .svg")
    if not Path(file).parent.is_dir():
        raise ValueError(f"--plot is {file!r}, but there is no folder {Path(file).parent}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from None

    def plot(points: list[tuple[Contender, dict[str, float]]]) -> None:
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="tokens per forward", ylabel="right answers, %", xscale="log")
        for family in dict.fromkeys(c.family for c, _ in points):
            own = sorted((f["tokens_per_forward"], f["accuracy"], f["low"], f["high"]) for c, f in points if c.family == family)
            x, y, low, high = ([100 * v if i else v for v in column] for i, column in enumerate(zip(*own)))
            error = [[a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)]]
            axes.errorbar(x, y, error, marker="o", markersize=4, linewidth=1.2, elinewidth=0.6, capsize=2, label=family)
        ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        temporary = Path(file).with_stem(Path(file).stem + ".part")
        figure.savefig(temporary, dpi=110, metadata={"Date": None} if file.endswith(".svg") else None)
        temporary.replace(file)

    return plot


# --- delayed decoding --------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def delayed(args: argparse.Namespace) -> None:
    """How early each token is already the model's first choice while LLaDA writes one token a forward (LocalLeap's figure)."""
    model, tokenizer = loader(args)("llada")
    fractions = (0.0, 0.1, 0.25, 0.5, 0.75)
    found, text_found = torch.zeros(len(fractions), 2), torch.zeros(len(fractions), 2)  # [chosen already, all]
    for task in tqdm(tasks_of(args.task), leave=False):
        for chosen in batches(args, task):
            seen = []  # for every forward: the slots of the block, the likeliest token of each, and which are masks still
            for step in decode(model, encode(tokenizer, chosen), "llada", gen_length=args.gen_length):
                seen.append((step.window, step.scores.token, step.candidates))
            final = step.x
            text = (final[:, -args.gen_length :] != model.config.eos_token_id).cumprod(-1).bool()  # [B, gen_length]: before the first EOS
            P = final.shape[1] - args.gen_length
            for i, fraction in enumerate(fractions):
                for window, token, masked in seen:
                    length = window.end - window.start
                    if length - window.forwards != int(fraction * length):
                        continue
                    right = (token == final[:, window.start : window.end]) | ~masked  # what is written is decided
                    inside = text[:, window.start - P : window.end - P]
                    found[i] += torch.tensor([right.sum(), right.numel()])
                    text_found[i] += torch.tensor([(right & inside).sum(), inside.sum()])
    print(about(model) + ".")
    print(f"{args.limit} held-out problems of each task, seed {args.seed}, gen_length {args.gen_length}. Steps are those of a block.\n")
    rows = [[f"{f:.0%}", f"{a / n:.1%}", f"{b / m:.1%}"] for f, (a, n), (b, m) in zip(fractions, found.tolist(), text_found.tolist())]
    print(table(["share of the steps done", "final token is the first choice", "the same, before the first EOS"], rows))
