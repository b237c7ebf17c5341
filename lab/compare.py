"""Strategies side by side on problems with an answer to check: `lab.bench compare | delayed`.

A contender is a strategy with settings, written `fast-dllm:cache=dual:threshold=0.8`. All
contenders decode the same held-out problems in turn, batch by batch, so that their ratios hold on
a machine whose speed drifts. One contender is no strategy: the greedy oracle.
"""

import functools
import json
import math
import sys
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import islice, product
from operator import gt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dllm import Result, Settings, StepLimit, decode, generate, plan, prepare
from kernels import Scores
from lab import command_line, own_rule, parallel
from lab.files import replacing, write
from lab.report import about, table
from lab.tasks import TASKS, Problem, check, problems
from load_weights import DTYPES, load_model, load_tokenizer
from strategies import STRATEGIES, Rule, Strategy, Window, options, rank, require

ASKED = "{limit} held-out problems of each task, seed {seed}, gen_length {gen_length}"
SHOWN_EVERY = 200  # problems decoded, between two tables on stderr
STORIES = ("one-step", "two-step", "three-step", "four-step")

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


# --- contenders ----------------------------------------------------------------------------------


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


# --- decoding and counting -----------------------------------------------------------------------


def encode(tokenizer, chosen: list[Problem]) -> list[list[int]]:
    return [tokenizer.encode_chat([{"role": "user", "content": p.prompt}]) for p in chosen]


@own_rule.faults()
def answer(model, tokenizer, chosen: list[Problem], strategy: str, generate=generate, **settings):
    """Decode problems in the chat template; the Result, and which answers are right."""
    result = generate(model, encode(tokenizer, chosen), strategy, **settings)
    rows = range(len(chosen))
    texts = [tokenizer.decode(result.answer(row), skip_special_tokens=False) for row in rows]
    return result, list(map(check, chosen, texts))


def counted(result: Result, right: list[bool]) -> Counter:
    """What a decode adds to the sums of its contender, over the problems as if each came alone."""
    n, (local, everywhere) = len(result.lengths), ar_ness(result)
    sums = {"problems": n, "right": sum(right), "rows": result.rows, "seconds": result.seconds}
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
    found = {"accuracy": p, "low": max(0.0, middle - half), "high": middle + half}
    found |= {name: sums[name] for name in ("problems", "right", "gained", "lost")}
    means = ("forwards", "rows", "ar_ness_local", "ar_ness_global")
    found |= {name: sums[name] / n for name in means}
    found["tokens_per_forward"] = sums["tokens"] / sums["forwards"]
    found["tokens_per_second"] = speed = sums["tokens"] / sums["seconds"]
    if baseline and baseline["tokens"]:
        found["speed_up"] = speed / (baseline["tokens"] / baseline["seconds"])
    return found


def batches(args: Namespace, task: str) -> Iterator[list[Problem]]:
    stream = islice(problems(args.seed, task, held_out=True), args.limit)
    while chosen := list(islice(stream, args.batch_size)):
        yield chosen


model_of, tokenizer_of = functools.cache(load_model), functools.cache(load_tokenizer)


def load(c: Contender, args: Namespace) -> tuple:
    """Model and tokenizer: its own, those of the flags, or the embedded ones of its strategy."""
    named = c.model or args.model
    source, adapter = (named, None) if named else command_line.made_for(c.strategy)
    adapter = None if c.adapter == "none" else c.adapter or args.adapter or adapter
    model = model_of(source, adapter, args.device, DTYPES.get(args.dtype))
    command_line.use_threads(model)
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
    (contenders, left_out), tasks = chosen_contenders(args), tasks_of(args.task)
    if args.plot:
        check_plot(args.plot)
    tally = decode_all(args, contenders, tasks)
    without = tally.without | left_out
    contenders = [c for c in contenders if c.label not in without]
    if not contenders:
        raise ValueError("; ".join(f"{label}: {why}" for label, why in without.items()))
    model, _ = load(contenders[0], args)
    where = about(model.device, model.dtype)
    base = next((c.label for c in contenders if c.strategy == "llada"), "")
    found = tally.figures([c.label for c in contenders], base)
    if args.plot and found and not tally.stopped:
        plot(args.plot, [(c, found["all"][c.label]) for c in contenders])
    if args.json:
        figures = {"figures": found, "without": without, "stopped": tally.stopped}
        write(json.dumps({"settings": vars(args), "machine": where} | figures), "table")
    elif found:
        asked = f"{ASKED.format(**vars(args))}, eos {args.eos}, batches of {args.batch_size}."
        asked += " Stopped: of each the same, in whole rounds." if tally.stopped else ""
        write(f"{where}.\n{asked}\n\n{tables(found, without, args.paired)}", "table")
    if tally.stopped:
        raise KeyboardInterrupt


def chosen_contenders(args: Namespace) -> tuple[list[Contender], dict[str, str]]:
    """Those that are asked for, each once, checked before anything is loaded; and label -> why, of
    those left out where nobody has chosen."""
    given, left_out = args.strategies.split(","), {}
    if args.strategies == ready():
        lacks = {name: missing(name, args.model, {}) for name in given}
        left_out = {
            name: f"needs a {own[0]} made for this model" for name, own in lacks.items() if own
        }
    found = (contender(text) for text in given if text not in left_out)
    if args.sweep:
        found = (swept for each in found for swept in sweep(each, args.gen_length))
    contenders = list({each.label: each for each in found}.values())
    for c in contenders:
        plan(c.strategy, common(args, c) | c.settings | dict.fromkeys({"guide"} & set(c.settings)))
        for name in missing(c.strategy, c.model or args.model, c.settings):
            made = f"its {name} of weights/ was made for another model than {c.model or args.model}"
            if name != "model":
                raise ValueError(f"{c.label}: {made}: give {c.strategy}:{name}=FILE")
            if not c.model:
                why = f"{c.label} needs a model trained for it, which --model is for the others"
                raise ValueError(f"{why}: give {c.strategy}:model=FOLDER")
    return contenders, left_out


def common(args: Namespace, c: Contender) -> dict:
    """What all contenders are given; the same end of an answer, or their forwards say little."""
    own = {} if args.eos == "own" else {"eos": args.eos}
    return {"gen_length": args.gen_length} | own


def missing(strategy: str, model: str | None, settings: dict) -> list[str]:
    """What of weights/ a strategy would take, beside its adapter, though it has another model."""
    if model is None or Path(model).resolve() == command_line.TINY.resolve():
        return []
    own = command_line.embedded(strategy).items() - {("model", command_line.TINY)}
    return sorted(name for name, _ in own if name != "adapter" and settings.get(name) is None)


@functools.cache
def ready() -> str:
    """The strategies that have all they need in weights/."""
    return ",".join(name for name in STRATEGIES if command_line.has_weights(name))


def check_plot(file: str) -> None:
    named, folder = file.endswith((".png", ".svg")), Path(file).parent
    require(named, "plot", file, "a name that ends in .png or .svg")
    require(folder.is_dir(), "plot", file, "a file in a folder that is there")
    if find_spec("matplotlib") is None:  # better known now than at the end
        raise ValueError("--plot needs matplotlib: pip install matplotlib")


@dataclass
class Tally:
    """What contenders did on the same problems, in whole rounds."""

    rounds: list = field(default_factory=list)  # of (task, {label: (sums, which were right)})
    without: dict[str, str] = field(default_factory=dict)  # label -> why it has no figures
    stopped: bool = False  # by Ctrl-C

    def figures(self, labels: list[str], base: str) -> dict[str, dict[str, dict]]:
        """Task, or `all` -> label -> figures, as far as tasks were begun."""
        sums: dict = defaultdict(lambda: {label: Counter() for label in labels})
        for task, did in self.rounds:
            for label, of in product(labels, (task, "all")):
                (counts, right), (_, first) = did[label], did[labels[0]]
                pairs = {"gained": sum(map(gt, right, first)), "lost": sum(map(gt, first, right))}
                sums[of][label].update(counts | pairs)
        return {
            task: {label: figures(own, by_label.get(base)) for label, own in by_label.items()}
            for task, by_label in sums.items()
        }


def decode_all(args: Namespace, contenders: list[Contender], tasks: list[str]) -> Tally:
    """What each contender did; under torchrun each process decodes its share.

    A contender that hits a limit is out. After Ctrl-C: what was done in whole rounds.
    """
    tally, unseen = Tally(), 0
    able = {c.label: (c, *prepared(args, c, tasks)) for c in contenders}
    own = lambda task: islice(batches(args, task), parallel.rank(), None, parallel.processes())
    with tqdm(total=args.limit * len(tasks) * len(contenders), unit="problem", leave=False) as bar:
        try:
            for task, chosen in ((task, chosen) for task in tasks for chosen in own(task)):
                did = {}
                for label, (c, model, tokenizer, settings) in list(able.items()):
                    try:
                        found = answer(model, tokenizer, chosen, c.strategy, c.generate, **settings)
                        did[label] = counted(*found), found[1]
                    except (StepLimit, ValueError, torch.OutOfMemoryError) as error:
                        tally.without[label] = " ".join(str(error).split())
                        del able[label]
                    bar.update(len(chosen) * parallel.processes())
                tally.rounds.append((task, did))
                unseen += len(chosen) * len(did)
                if unseen >= SHOWN_EVERY:
                    unseen, found = 0, tally.figures(list(able), "")
                    tqdm.write(f"So far:\n\n{tables(found, tally.without)}\n", file=sys.stderr)
        except KeyboardInterrupt:
            if parallel.processes() > 1:
                raise
            tally.stopped = True
    tally, *others = parallel.gathered(tally)
    for other in others:
        tally.rounds += other.rounds
        tally.without |= other.without
    return tally


def prepared(args: Namespace, c: Contender, tasks: list[str]) -> tuple:
    """A contender's model, tokenizer and settings, checked on the first problems."""
    model, tokenizer = load(c, args)
    own = common(args, c) | c.settings
    if guide := own.get("guide") or command_line.guide_for(c.strategy):
        own["guide"] = model_of(guide, None, args.device, DTYPES.get(args.dtype))
    prepare(model, encode(tokenizer, next(batches(args, tasks[0]))), c.strategy, own)
    return model, tokenizer, own


def tables(found: dict, without: dict[str, str], paired: bool = False) -> str:
    """All figures, the accuracy by task if there are several, and who has none, and why."""
    columns = lambda f: cost(f) | (against(f) if paired else {})
    rows = [{"strategy": label} | columns(f) for label, f in found["all"].items()]
    none = dict.fromkeys(rows[0], "") | {"right": "none"}
    parts = [table(rows + [none | {"strategy": label} for label in without])]
    if len(tasks := [task for task in found if task != "all"]) > 1:
        right = lambda label: {t: f"{found[t][label]['accuracy']:.1%}" for t in tasks}
        parts.append(table([{"right": label} | right(label) for label in found["all"]]))
    parts += ["\n".join(f"{label}: {why}" for label, why in without.items())] if without else []
    return "\n\n".join(parts)


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


def against(f: dict[str, float]) -> dict[str, str]:
    """On how many problems a contender differs from the first, and how likely chance does that.

    The sign test, two-sided: were both equally good, each difference would be a fair coin.
    """
    n, few = f["gained"] + f["lost"], min(f["gained"], f["lost"])
    chance = min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)
    return {"against the first": f"+{f['gained']} -{f['lost']}", "by chance": f"{chance:.2g}"}


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
    how = {"format": file[-3:], "metadata": {"Date": None} if file.endswith(".svg") else None}
    with replacing(file) as place:
        figure.savefig(place, **how)


@torch.inference_mode()
def delayed(args: Namespace) -> None:
    """How early each token is already the model's first choice while LLaDA writes one a forward.

    LocalLeap's figure (arXiv 2510.07081), for all tokens and for those before the first EOS.
    """
    (model, tokenizer), G = load(contender("llada"), args), args.gen_length
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
    rows = []
    for fraction, (right, cells, inside, text) in zip(fractions, found.tolist()):
        row = {"share of the steps done": f"{fraction:.0%}"}
        row["final token is the first choice"] = f"{right / cells:.1%}"
        row["the same, before the first EOS"] = f"{inside / text:.1%}"
        rows.append(row)
    asked = f"{ASKED.format(**vars(args))}. Steps are those of a block."
    write(f"{about(model.device, model.dtype)}.\n{asked}\n\n{table(rows)}", "table")
