"""Strategies side by side on problems with an answer to check: `lab.bench compare | delayed`.

All contenders (lab/contenders.py) decode the same problems (lab/data.py) in turn, batch by batch,
so that their ratios hold on a machine whose speed drifts. With --out each answer is a line of a
file, and what stands there is not decoded again.
"""

import json
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, product
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dllm import Result, Step, StepLimit, check_prompt, decode, finish, generate, prepare, stream
from lab import own_rule, parallel
from lab.contenders import Contender, chosen_contenders, contender, load, maker, opened, planned
from lab.data import Data, Item, Tasks, batches, source_of
from lab.figures import SUMS, against, as_csv, check_plot, counted, figures, paired, plot, tables
from lab.figures import fragile as brittle
from lab.figures import unmatched as no_match
from lab.files import write
from lab.journal import Journal
from lab.report import about, latex, table

SHOWN_EVERY = 200  # problems decoded, between two tables on stderr
FORMS = ("json", "csv", "latex")  # of the figures, instead of a Markdown table


# --- decoding and counting -----------------------------------------------------------------------


@own_rule.faults()
def answer(model, tokenizer, chosen: list[Item], strategy: str, generate=generate, **settings):
    """Decode problems; what came of each. Rows and seconds are a batch's, shared by forwards."""
    prompts = [item.text(tokenizer) for item in chosen]
    result = generate(model, [tokenizer.encode(text) for text in prompts], strategy, **settings)
    total, runs = sum(result.forwards), []
    for row, (item, prompt) in enumerate(zip(chosen, prompts)):
        text = tokenizer.decode(result.answer(row), skip_special_tokens=not item.special)
        run = {"id": item.id, "prompt": prompt, "gold": item.gold} | item.judge(text)
        run |= {"tokens": result.lengths[row], "forwards": result.forwards[row]}  # before an EOS
        parts = {"rows": result.rows, "seconds": result.seconds}
        run |= {name: n * result.forwards[row] / total for name, n in parts.items()}
        local, everywhere = ar_ness(result, row)
        run |= {"fragile": result.fragile[row]} if isinstance(result, Noted) else {}
        runs.append(run | {"ar_ness_local": local, "ar_ness_global": everywhere})
    return runs


@dataclass
class Noted(Result):
    """A decode in which it was noted how near another token was to each that was written."""

    fragile: list[int]  # of the tokens of each answer before its first EOS


def noted(size: float, model, prompts, strategy, **settings) -> Noted:
    """`generate`, counting the tokens that logits which move by less than `size` may flip: when
    they were written, last if taken back, another was less than twice that away."""
    canvas = prepare(model, prompts, strategy, settings)
    if canvas.strategy.search:
        raise ValueError("--fragile cannot follow the copies that a search makes")
    least = torch.full(canvas.x.shape, torch.inf, device=canvas.x.device)  # [B, S]

    def noting() -> Iterator[Step]:
        for step in stream(canvas):
            line, cell = step.commit.nonzero(as_tuple=True)
            cells = step.window.live[line], cell + step.window.start
            least[cells] = gap(step.logits[line, cell], step.token[line, cell])
            yield step

    result = finish(canvas, noting())
    within = (least < 2 * size)[:, result.prompt_length :]
    counts = [int(row[:n].sum()) for row, n in zip(within, result.lengths)]
    return Noted(**vars(result), fragile=counts)


def gap(logits: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """How far the logit of a token, int64 [N], is from the highest other one of [N, V]."""
    z, token = logits.float(), token[:, None]
    others = z.scatter(-1, token, -torch.inf).amax(-1)
    return (z.gather(-1, token)[:, 0] - others).abs()


def ar_ness(result: Result, row: int = 0, n: int = 1) -> tuple[float, float]:
    """How far an answer was written from left to right, 1 for entirely: (local, global).

    DiffuCoder, arXiv 2506.20639. Tokens that were written in one forward count from left to right.
    local: share of the tokens, after the first n, right behind the n written before them
    global: share of the tokens that were among the n leftmost masks when they were written
    """
    written = result.written[row, result.prompt_length :][: result.lengths[row]]
    order = written.argsort(stable=True)[int((written == 0).sum()) :]  # none of those given
    behind = torch.ones(1)
    if len(order) > n:
        behind = (order.unfold(0, n + 1, 1).diff() == 1).all(-1)
    before = (order < order[:, None]).triu(1).sum(-1)  # masks to the left of each
    everywhere = (before < n).float().mean().item() if len(order) else 1.0
    return behind.float().mean().item(), everywhere


@dataclass
class Tally:
    """What contenders did on the same problems, in whole rounds."""

    rounds: list = field(default_factory=list)  # of (task, {label: what came of each problem})
    without: dict[str, str] = field(default_factory=dict)  # label -> why it has no figures
    stopped: bool = False  # by Ctrl-C

    def figures(self, labels: list[str], base: str) -> dict[str, dict[str, dict]]:
        """Task, or `all` -> label -> figures, as far as tasks were begun."""
        runs: dict = defaultdict(lambda: {label: [] for label in labels})
        for task, did in self.rounds:
            for label, of in product(labels, (task, "all")):
                runs[of][label] += did[label]
        found: dict = {}
        for task, own in runs.items():
            sums, first = {label: counted(own[label]) for label in labels}, own[labels[0]]
            found[task] = {
                label: figures(sums[label], sums.get(base)) | paired(own[label], first)
                for label in labels
            }
        return found


class Runs:
    """What --out holds already, by contender and problem, and what is added to it."""

    def __init__(self, journal: Journal | None, makers: dict[str, dict]):
        self.journal, self.makers, self.done = journal, makers, {}
        keys = "contender", "prompt", "gold", "text", "extracted", *SUMS
        for number, line in enumerate(journal.read(keys) if journal else (), start=1):
            if not all(isinstance(line[name], (int, float)) for name in SUMS):
                raise journal.wrong(number)
            if made_by := makers.get(str(line["contender"])):
                journal.check_maker(number, line, made_by)
                self.done[line["contender"], line["id"]] = line

    def check(self, label: str, item: Item, prompt: str) -> None:
        """Refuse a file in which another problem has this id."""
        line = self.done.get((label, item.id))
        if line and (line["prompt"], line["gold"]) != (prompt, item.gold):
            what = "prompt" if line["prompt"] != prompt else "answer"
            where = f"--out {self.journal.path} has another {what} of the id {item.id!r}"
            raise ValueError(f"{where}: give another file")

    def of(self, label: str, chosen: list[Item]) -> list[dict] | None:
        """What came of these problems, if all is known."""
        found = [self.done.get((label, item.id)) for item in chosen]
        return found if all(found) else None

    def add(self, label: str, runs: list[dict]) -> None:
        """Add what is not there: of a batch of which a kill has left a part, the rest."""
        new = [run for run in runs if (label, run["id"]) not in self.done]
        if self.journal:
            self.journal.add([run | self.makers[label] for run in new])


def decode_all(args: Namespace, contenders: list[Contender], source, runs=None) -> Tally:
    """What each contender did; under torchrun each process decodes its share.

    A contender that hits a limit is out. After Ctrl-C: what was done in whole rounds.
    """
    tally, runs, unseen = Tally(), runs or Runs(None, {}), 0
    able = {c.label: (c, *prepared(args, c, source, runs)) for c in contenders}
    if runs.journal:
        runs.journal.begin()
    with tqdm(total=source.count * len(contenders), unit="problem", leave=False) as bar:
        try:
            for task, chosen in shared_out(source, args.batch_size):
                did = {}
                for label, (c, *how) in list(able.items()):
                    if (found := runs.of(label, chosen)) is None:
                        try:
                            found = decoded(c, how, chosen)
                        except (StepLimit, ValueError, torch.OutOfMemoryError) as error:
                            tally.without[label] = " ".join(str(error).split())
                            del able[label]
                            continue
                        runs.add(label, found)
                        unseen += len(chosen)
                    did[label] = found
                    bar.update(len(chosen) * parallel.processes())
                tally.rounds.append((task, did))
                if unseen >= SHOWN_EVERY and able:
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


def decoded(c: Contender, how: list, chosen: list[Item]) -> list[dict]:
    model, tokenizer, settings = how
    return answer(model, tokenizer, chosen, c.strategy, c.generate, **settings)


def shared_out(source, size: int) -> Iterator[tuple[str, list[Item]]]:
    """Task by task the batches of this process."""
    for task in source.names:
        for chosen in islice(
            batches(source.items(task), size), parallel.rank(), None, parallel.processes()
        ):
            yield task, chosen


def prepared(args: Namespace, c: Contender, source, runs: Runs) -> tuple:
    """A contender's model, tokenizer and settings, checked on the first problems, and on all of a
    file."""
    model, tokenizer, own = opened(c, args)
    every = [item for task in source.names for item in source.items(task)] if source.lists else []
    length = planned(args, c)[1].gen_length
    for item in every:
        text = item.text(tokenizer)
        try:
            check_prompt(tokenizer.encode(text), model.config, length)
        except ValueError as error:
            raise ValueError(f"{c.label}, problem {item.id!r}: {error}") from None
        runs.check(c.label, item, text)
    _, first = next(shared_out(source, args.batch_size))
    ids = [tokenizer.encode(item.text(tokenizer)) for item in first]
    prepare(model, ids, c.strategy, own)
    return model, tokenizer, own


# --- compare -------------------------------------------------------------------------------------


def compare(args: Namespace) -> None:
    """Decode the same problems with all contenders; print accuracy and cost of each."""
    check_forms(args)
    (contenders, left_out), source = chosen_contenders(args), source_of(args)
    if args.plot:
        check_plot(args.plot)
    if args.fragile is not None:
        contenders = [noting(c, args.fragile) for c in contenders]
    noise = {} if args.fragile is None else {"noise": args.fragile}
    with Journal(args.out, "run") if args.out else nullcontext() as journal:
        judged_by, of = source.judged_by | noise, contenders if journal else ()
        makers = {c.label: maker(args, c, judged_by) for c in of}
        tally = decode_all(args, contenders, source, Runs(journal, makers))
    tally.without |= left_out
    contenders = [c for c in contenders if c.label not in tally.without]
    if not contenders:
        raise ValueError("; ".join(f"{label}: {why}" for label, why in tally.without.items()))
    base = next((c.label for c in contenders if c.strategy == "llada"), "")
    found = tally.figures([c.label for c in contenders], base)
    if args.plot and found and not tally.stopped:
        plot(args.plot, [(c, found["all"][c.label]) for c in contenders])
    if found or args.json:
        model, _ = load(contenders[0], args)
        shown(args, source, found, tally, about(model.device, model.dtype))
    if tally.stopped:
        raise KeyboardInterrupt


def noting(c: Contender, size: float) -> Contender:
    if c.generate is not generate:
        raise ValueError(f"--fragile has no meaning for {c.label}, which knows what it will write")
    return replace(c, generate=partial(noted, size))


def shown(args: Namespace, source: Tasks | Data, found: dict, tally: Tally, where: str) -> None:
    """Print the figures in the form that is asked for; beside CSV all else goes to stderr."""
    if args.json:
        figures = {"figures": found, "without": tally.without, "stopped": tally.stopped}
        return write(json.dumps({"settings": vars(args), "machine": where} | figures), "table")
    asked = f"{source.about}, gen_length {args.gen_length}, eos {args.eos}"
    asked = f"{where}.\n{asked}, batches of {args.batch_size}."
    asked += " Stopped: of each the same, in whole rounds." if tally.stopped else ""
    if args.csv:
        print(asked, file=sys.stderr)
        return write(as_csv(found, tally.without), "table")
    show = [against] * (args.paired or source.lists) + [no_match] * source.extracts
    show += [brittle] * (args.fragile is not None)
    form = latex if args.latex else table
    write(f"{asked}\n\n{tables(found, tally.without, show, form)}", "table")


def check_forms(args: Namespace) -> None:
    forms = [f"--{name}" for name in FORMS if getattr(args, name)]
    if len(forms) > 1:
        raise ValueError(f"{forms[1]} has no meaning with {forms[0]}")
    files = {flag: getattr(args, flag) for flag in ("data", "few_shot") if getattr(args, flag)}
    for flag, file in files.items():
        if args.out and Path(args.out).exists() and Path(args.out).samefile(file):
            raise ValueError(f"--out {args.out} is the file of --{flag.replace('_', '-')}")


@torch.inference_mode()
def delayed(args: Namespace) -> None:
    """How early each token is already the model's first choice while LLaDA writes one a forward.

    LocalLeap's figure (arXiv 2510.07081), for all tokens and for those before the first EOS.
    """
    (model, tokenizer), G = load(contender("llada"), args), args.gen_length
    fractions, found = (0.0, 0.1, 0.25, 0.5, 0.75), torch.zeros(5, 4)
    source = Tasks(args)
    for task in tqdm(source.names, leave=False):
        for chosen in batches(source.items(task), args.batch_size):
            seen = []  # what was the first choice, and where that was decided already
            prompts = [tokenizer.encode(item.text(tokenizer)) for item in chosen]
            for step in decode(model, prompts, "llada", gen_length=G):
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
    asked = f"{source.about}, gen_length {G}. Steps are those of a block."
    write(f"{about(model.device, model.dtype)}.\n{asked}\n\n{table(rows)}", "table")
