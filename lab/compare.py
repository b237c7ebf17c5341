"""Strategies side by side on problems with an answer to check: `lab.bench compare | delayed`.

A contender is a strategy with settings, written `fast-dllm:cache=dual:threshold=0.8`. All
contenders decode the same held-out problems in turn, batch by batch, so that their ratios hold on
a machine whose speed drifts. One contender is no strategy: the greedy oracle.
"""

import functools
import json
import math
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dllm import Result, Settings, decode, generate, plan
from kernels import Scores
from lab import own_rule, parallel
from lab.command_line import load_guide, made_for, read_value, use_threads
from lab.report import about, table
from lab.tasks import TASKS, Problem, check, problems
from load_weights import DTYPES, load_model, load_tokenizer
from strategies import STRATEGIES, Rule, Strategy, Window, options, rank, require

ASKED = "{limit} held-out problems of each task, seed {seed}, gen_length {gen_length}"
STORIES = ("one-step", "two-step", "three-step", "four-step")

# The setting that trades accuracy for speed, and what --sweep tries; for llada, tokens a forward.
SWEEPS = {
    "llada": ("steps", (1, 2, 4, 8)),
    "fast-dllm": ("threshold", (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)),
    "localleap": ("relaxed_threshold", (0.9, 0.75, 0.65, 0.5, 0.3)),
    "streaming": ("confidence_alpha", (0.0, 0.3, 0.6, 0.9)),
    "d2f": ("skip_threshold", (0.99, 0.95, 0.9, 0.8, 0.7, 0.5)),
}


# --- contenders ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A strategy with settings; `family` is what it was before a sweep gave it one more of them."""

    strategy: str
    settings: dict
    label: str
    family: str
    generate: Callable[..., Result] = generate


def contender(text: str) -> Contender:
    """Read `strategy:setting=value:...`, whose strategy may be FILE.py:RULE.

    The greedy oracle is that of fast-dllm, which by default writes one token a forward.
    """
    name, *pairs = text.split(":")
    if name.endswith(".py") and pairs:
        name = f"{name}:{pairs.pop(0)}"
    if name == "greedy-oracle":
        of = contender(":".join(["fast-dllm:threshold=none", *pairs]))
        return replace(of, label=text, family=text, generate=greedy_oracle)
    own_rule.register(name)
    takes, settings = dict(options(Settings)), {}
    if name in STRATEGIES:  # `plan` refuses what is not
        takes |= options(STRATEGIES[name])
    for pair in pairs:
        setting, _, value = pair.partition("=")
        setting = setting.replace("-", "_")
        with suppress(KeyError, ValueError):  # so it does what stays a text
            value = read_value(takes[setting], value)
        settings[setting] = value
    return Contender(name, settings, text, text)


def sweep(of: Contender, gen_length: int) -> list[Contender]:
    """The same contender at several values of its main setting; itself if it has none."""
    if of.strategy not in SWEEPS or of.generate is not generate:
        return [of]
    name, values = SWEEPS[of.strategy]
    values = [gen_length // value for value in values] if name == "steps" else values
    own = [of.settings | {name: value} for value in values]
    return [replace(of, settings=s, label=f"{of.label}:{name}={s[name]}") for s in own]


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


# --- decoding and counting -----------------------------------------------------------------------


def encode(tokenizer, chosen: list[Problem]) -> list[list[int]]:
    return [tokenizer.encode_chat([{"role": "user", "content": p.prompt}]) for p in chosen]


@own_rule.faults()
def answer(model, tokenizer, chosen: list[Problem], strategy: str, generate=generate, **settings):
    """Decode problems in the chat template; the Result, and how many answers are right."""
    result = generate(model, encode(tokenizer, chosen), strategy, **settings)
    rows = range(len(chosen))
    texts = [tokenizer.decode(result.answer(row), skip_special_tokens=False) for row in rows]
    return result, sum(map(check, chosen, texts))


def counted(result: Result, right: int) -> Counter:
    """What a decode adds to the sums of its contender, over the problems as if each came alone."""
    n, (local, everywhere) = len(result.lengths), ar_ness(result)
    sums = {"problems": n, "right": right, "rows": result.rows, "seconds": result.seconds}
    sums |= {"forwards": sum(result.forwards), "tokens": sum(result.lengths)}  # before an EOS
    return Counter(sums | {"ar_ness_local": local * n, "ar_ness_global": everywhere * n})


def ar_ness(result: Result, n: int = 1) -> tuple[float, float]:
    """How far answers were written from left to right, 1 for entirely: (local, global).

    Means over the rows (DiffuCoder, arXiv 2506.20639). Tokens that were written in one forward
    count from left to right.
    local: share of the tokens, after the first n, right behind the n written before them
    global: share of the tokens that were among the n leftmost masks when they were written
    """
    shares = []
    for row, length in enumerate(result.lengths):
        written = result.written[row, result.prompt_length :][:length]
        order = written.argsort(stable=True)[int((written == 0).sum()) :]  # none of those given
        behind = torch.ones(1)
        if len(order) > n:
            behind = (order.unfold(0, n + 1, 1).diff() == 1).all(-1)
        before = (order < order[:, None]).triu(1).sum(-1)  # masks to the left of each
        everywhere = (before < n).float().mean().item() if len(order) else 1.0
        shares.append((behind.float().mean().item(), everywhere))
    return tuple(sum(column) / len(shares) for column in zip(*shares))


def figures(sums: Counter, baseline: Counter | None) -> dict[str, float]:
    """Means over the problems; accuracy with its 95 % Wilson interval; speed-up over a baseline."""
    n, z = sums["problems"], 1.96
    p = sums["right"] / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = {"accuracy": p, "low": middle - half, "high": middle + half}
    means = ("forwards", "rows", "ar_ness_local", "ar_ness_global")
    found |= {name: sums[name] / n for name in means}
    found["tokens_per_forward"] = sums["tokens"] / sums["forwards"]
    found["tokens_per_second"] = speed = sums["tokens"] / sums["seconds"]
    if baseline:
        found["speed_up"] = speed / (baseline["tokens"] / baseline["seconds"])
    return found


def batches(args: Namespace, task: str) -> Iterator[list[Problem]]:
    stream = islice(problems(args.seed, task, held_out=True), args.limit)
    while chosen := list(islice(stream, args.batch_size)):
        yield chosen


model_of, tokenizer_of = functools.cache(load_model), functools.cache(load_tokenizer)


def load(strategy: str, args: Namespace) -> tuple:
    """Model and tokenizer: those of the flags, else the embedded ones made for the strategy."""
    source, adapter = (args.model, None) if args.model else made_for(strategy)
    model = model_of(source, args.adapter or adapter, args.device, DTYPES.get(args.dtype))
    use_threads(model)
    return model, tokenizer_of(source)


def tasks_of(text: str | None) -> list[str]:
    """The tasks that --task names: some, `stories`, or all."""
    names = list(STORIES) if text == "stories" else text.split(",") if text else list(TASKS)
    for name in names:
        require(name in TASKS, "task", name, f"stories, or of {', '.join(TASKS)}")
    return names


# --- compare -------------------------------------------------------------------------------------


def compare(args: Namespace) -> None:
    """Decode the same held-out problems with all contenders; print accuracy and cost of each."""
    contenders = [contender(text) for text in dict.fromkeys(args.strategies.split(","))]
    if args.sweep:
        contenders = [swept for each in contenders for swept in sweep(each, args.gen_length)]
    for c in contenders:
        plan(c.strategy, {"gen_length": args.gen_length} | c.settings)  # before anything is loaded
    tasks = tasks_of(args.task)
    if args.plot:
        named, folder = args.plot.endswith((".png", ".svg")), Path(args.plot).parent
        require(named, "plot", args.plot, "a name that ends in .png or .svg")
        require(folder.is_dir(), "plot", args.plot, "a file in a folder that is there")
    sums = decode_all(args, contenders, tasks)
    base = next((c.label for c in contenders if c.strategy == "llada"), "")
    found = {
        task: {label: figures(own, by_label.get(base)) for label, own in by_label.items()}
        for task, by_label in sums.items()
    }
    if args.plot:
        plot(args.plot, [(c, found["all"][c.label]) for c in contenders])
    model, _ = load(contenders[0].strategy, args)
    where = about(model.device, model.dtype)
    if args.json:
        print(json.dumps({"settings": vars(args), "machine": where, "figures": found}))
        return
    print(f"{where}.\n{ASKED.format(**vars(args))}, batches of {args.batch_size}.\n")
    print(table([{"strategy": label} | cost(f) for label, f in found["all"].items()]))
    if len(tasks) > 1:
        right = lambda label: {t: f"{found[t][label]['accuracy']:.1%}" for t in tasks}
        print("\n" + table([{"right": label} | right(label) for label in found["all"]]))


def decode_all(args: Namespace, contenders: list[Contender], tasks: list[str]) -> dict:
    """Task -> label -> what that contender did; under torchrun each process decodes its share."""
    models = {c.strategy: load(c.strategy, args) for c in contenders}
    guides = {name: load_guide(name, None, args.device, DTYPES.get(args.dtype)) for name in models}
    sums = {task: {c.label: Counter() for c in contenders} for task in tasks}
    with tqdm(total=args.limit * len(tasks) * len(contenders), unit="problem", leave=False) as bar:
        for task in tasks:
            shared = islice(batches(args, task), parallel.rank(), None, parallel.processes())
            for chosen, c in product(shared, contenders):
                own = {"gen_length": args.gen_length} | c.settings | guides[c.strategy]
                did = answer(*models[c.strategy], chosen, c.strategy, c.generate, **own)
                sums[task][c.label] += counted(*did)
                bar.update(len(chosen) * parallel.processes())
    everyone, total = parallel.gathered(sums), {c.label: Counter() for c in contenders}
    for task, label in product(tasks, total):
        sums[task][label] = sum((each[task][label] for each in everyone), Counter())
        total[label] += sums[task][label]
    return sums | {"all": total}


def cost(f: dict[str, float]) -> dict[str, str]:
    """A line of the table."""
    return {
        "right": f"{f['accuracy']:.1%}",
        "95 % interval": f"{f['low']:.1%} - {f['high']:.1%}",
        "forwards": f"{f['forwards']:.1f}",
        "rows": f"{f['rows']:.0f}",
        "tokens/forward": f"{f['tokens_per_forward']:.2f}",
        "tokens/s": f"{f['tokens_per_second']:.0f}",
        "speed-up": f"{f['speed_up']:.1f}x" if "speed_up" in f else "",
        "AR-ness": f"{f['ar_ness_local']:.2f} {f['ar_ness_global']:.2f}",
    }


def plot(file: str, points: list[tuple[Contender, dict[str, float]]]) -> None:
    """Draw accuracy with its interval against tokens per forward, a line for each family."""
    from matplotlib.figure import Figure  # slow: only who draws waits for it

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="tokens per forward", ylabel="right answers, %", xscale="log")
    for family in dict.fromkeys(c.family for c, _ in points):
        own = [found for c, found in points if c.family == family]
        own.sort(key=lambda found: found["tokens_per_forward"])
        x = [found["tokens_per_forward"] for found in own]
        low, y, high = ([100 * f[name] for f in own] for name in ("low", "accuracy", "high"))
        error = [[b - a for a, b in zip(low, y)], [b - a for a, b in zip(y, high)]]
        axes.errorbar(x, y, error, marker="o", capsize=2, label=family)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    temporary = Path(file).with_stem(Path(file).stem + ".part")
    figure.savefig(temporary, metadata={"Date": None} if file.endswith(".svg") else None)
    temporary.replace(file)


@torch.inference_mode()
def delayed(args: Namespace) -> None:
    """How early each token is already the model's first choice while LLaDA writes one a forward.

    LocalLeap's figure (arXiv 2510.07081), for all tokens and for those before the first EOS.
    """
    (model, tokenizer), G = load("llada", args), args.gen_length
    fractions, found = (0.0, 0.1, 0.25, 0.5, 0.75), torch.zeros(5, 4)
    for task in tqdm(tasks_of(args.task), leave=False):
        for chosen in batches(args, task):
            seen = []  # what was the first choice, and where that was decided already
            for step in decode(model, encode(tokenizer, chosen), "llada", gen_length=G):
                seen.append((step.window, step.scores.token, ~step.candidates))
            final = step.x  # [B, S]
            ends = torch.isin(final[:, -G:], torch.tensor(model.config.ends))
            text = (~ends).cumprod(-1).bool()  # [B, G]
            text = F.pad(text, (final.shape[1] - G, 0))  # [B, S]
            for window, token, written in seen:
                span, k = slice(window.start, window.end), window.end - window.start
                right, inside = (token == final[:, span]) | written, text[:, span]
                counts = [right.sum(), right.numel(), (right & inside).sum(), inside.sum()]
                for row, fraction in zip(found, fractions):
                    if int(fraction * k) == k - window.remaining:  # so many are done
                        row += torch.tensor(counts)
    print(about(model.device, model.dtype) + ".")
    print(ASKED.format(**vars(args)) + ". Steps are those of a block.\n")
    rows = []
    for fraction, (right, cells, inside, text) in zip(fractions, found.tolist()):
        row = {"share of the steps done": f"{fraction:.0%}"}
        row["final token is the first choice"] = f"{right / cells:.1%}"
        row["the same, before the first EOS"] = f"{inside / text:.1%}"
        rows.append(row)
    print(table(rows))
