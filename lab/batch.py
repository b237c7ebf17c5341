"""Many prompts: `--prompts in.jsonl --out out.jsonl`.

A line of the input is {"id": ..., "prompt": ...}; without an id its line number serves. A line of
the output repeats both, beside the answer, its counters and what made it. The lines come in the
order in which they are done, short prompts first, each batch on the disk before the next is begun:
a run that was stopped goes on where it was, and cuts off a torn last line.

Under torchrun each process answers its share of the batches. Left out on purpose: several runs that
write one file; the second is refused.
"""

import hashlib
import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from dllm import Result, Settings, StepLimit, check_prompt, generate, prepare
from lab import parallel
from lab.command_line import checked_plan, encode, find_model, open_model, print_counters
from lab.files import append, check_place, json_object, locked, read_bytes, whole_text
from strategies import STRATEGIES, options, require

BATCH_SIZE = 8


class Question(NamedTuple):
    id: str | int
    prompt: str
    ids: list[int]


def batch(args: Namespace, settings: dict) -> Callable[[], None]:
    """Check all there is to check; return what answers the questions that have no answer yet."""
    _, chosen = checked_plan(args, settings)
    size = BATCH_SIZE if args.batch_size is None else args.batch_size
    require(size >= 1, "batch_size", size, "at least 1")
    out = Path(args.out)
    check_place("--out", args.out)
    if out.exists() and out.samefile(args.prompts):
        raise ValueError(f"--out {out} is the file of the prompts")
    made_by = maker(args, chosen)
    tokenizer, config, load = find_model(args)

    def encoded(prompt: str) -> list[int]:
        return check_prompt(encode(tokenizer, prompt, args.raw), config, chosen.gen_length)[0]

    questions, bad = read_questions(args.prompts, encoded)
    with ExitStack() as stack:
        if out.exists() and parallel.rank() == 0:
            stack.enter_context(locked(out))
        answered, whole = read_answers(out, made_by)
        print(*(f"{line}\n" for line in bad), sep="", end="", file=sys.stderr)
        groups = grouped(questions, answered, out, size)
        model = open_model(args, settings, load)
        if groups:  # is there memory for the largest?
            prepare(model, [q.ids for q in groups[-1]], args.strategy, settings)
        held = stack.pop_all()
    decode = partial(generate, model, strategy=args.strategy, **settings)
    counts = {"answered_before": len(questions) - sum(map(len, groups)), "bad_lines": len(bad)}

    def answer() -> None:
        with held:
            try:
                total = work_off(groups, Output(out, whole, held), decode, tokenizer, made_by)
            except OSError as error:
                raise ValueError(f"--out {out} cannot be written: {error.strerror}") from None
        print_counters(args, total | counts, model.device, chosen.seed)
        if bad or total["unanswered"]:
            sys.exit(1)

    return answer


def grouped(questions: list, answered: dict, out: Path, size: int) -> list[list[Question]]:
    """Those that have no answer yet, in batches, the short ones first."""
    for q in questions:
        if answered.get(q.id, q.prompt) != q.prompt:
            raise ValueError(f"{out} has another prompt of the id {q.id!r}: give another --out")
    left = sorted((q for q in questions if q.id not in answered), key=lambda q: len(q.ids))
    return [left[i : i + size] for i in range(0, len(left), size)]


def maker(args: Namespace, chosen: Settings) -> dict:
    """What made an answer, as its line says: a run with anything else must not add to the file."""
    flags = ("strategy", "model", "adapter", "dtype", "int8", "raw")
    made_by = {name: getattr(args, name) for name in flags}
    made_by["model"] = args.model or "embedded"
    file, hashed = args.strategy.rpartition(":")[0], None  # of a rule of one's own
    if file.endswith(".py"):
        hashed = hashlib.sha256(read_bytes(file)).hexdigest()
    declared = options(STRATEGIES[args.strategy]).items()
    own = {name: getattr(args, name, option.default) for name, option in declared}
    made_by |= {"rule_hash": hashed, "settings": own | asdict(chosen)}
    return json.loads(json.dumps(made_by))  # as it is read again


class Output(NamedTuple):
    file: Path
    whole: int | None  # bytes of it to keep: behind them is half an answer; None if it is not there
    held: ExitStack  # what keeps it from other runs

    def begin(self) -> None:
        """Cut it off behind the whole lines, or make it."""
        if self.whole is None:
            self.file.touch()
            self.held.enter_context(locked(self.file))
            if self.file.stat().st_size:
                raise ValueError(
                    f"--out {self.file}: another run has begun it just now; start again"
                )
        os.truncate(self.file, self.whole or 0)


def work_off(groups: list, out: Output, decode, tokenizer, made_by: dict) -> dict:
    """Answer this process's share of the batches, and count what it took all of them."""
    if parallel.rank() == 0:
        out.begin()
    parallel.gathered(None)  # wait until it is there
    share, failed = groups[parallel.rank() :: parallel.processes()], []
    total = Counter(questions=0, forwards=0, rows=0, tokens=0, seconds=0.0, unanswered=0)
    count = sum(map(len, share))
    with open(out.file, "ab", buffering=0) as file, tqdm(total=count, unit=" prompts") as bar:
        for group in share:
            try:
                result = decode([q.ids for q in group])
            except StepLimit as error:
                failed.append(f"no answer to {', '.join(repr(q.id) for q in group)}: {error}\n")
                total["unanswered"] += len(group)
            else:
                records = [record(q, result, i, tokenizer) | made_by for i, q in enumerate(group)]
                append(file, b"".join(json.dumps(each).encode() + b"\n" for each in records))
                os.fsync(file.fileno())
                counters = result.counters() | {"questions": len(group), "unanswered": 0}
                total.update({name: counters[name] for name in total})
            bar.update(len(group))
    print(*sum(parallel.gathered(failed), []), sep="", end="", file=sys.stderr)
    return added_up(parallel.gathered(total))


def added_up(totals: list[Counter]) -> dict:
    """The counters of all processes, which worked at the same time."""
    seconds = max(each["seconds"] for each in totals)
    total = {name: sum(each[name] for each in totals) for name in totals[0]}
    speed = round(total["tokens"] / seconds, 1) if total["tokens"] else 0
    return total | {"seconds": round(seconds, 3), "tokens_per_second": speed}


def record(question: Question, result: Result, row: int, tokenizer) -> dict:
    asked = {"id": question.id, "prompt": question.prompt}
    counters = {"tokens": result.lengths[row], "forwards": result.forwards[row]}
    return asked | {"answer": tokenizer.decode(result.answer(row))} | counters


def read_questions(file: str, encoded: Callable) -> tuple[list[Question], list[str]]:
    """The questions, and what is wrong with each line that holds none; empty lines are passed over.

    encoded: a prompt -> its ids, or ValueError if the model cannot take it
    """
    questions: dict[str | int, Question] = {}
    bad = []
    for number, line in enumerate(read_bytes(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            asked = json_object(line)
            if asked is None:
                raise ValueError('expected an object, {"id": ..., "prompt": "..."}')
            if "prompt" not in asked:
                found = ", ".join(map(repr, islice(asked, 5))) or "nothing"
                raise ValueError(f"expected a 'prompt', found {found}")
            name, prompt = asked.get("id", number), asked["prompt"]
            require(type(name) in (str, int), "id", name, "a text or a whole number")
            require(isinstance(prompt, str), "prompt", prompt, "a text")
            if name in questions:
                raise ValueError(f"the id {name!r} has come before")
            questions[name] = Question(name, prompt, encoded(whole_text(prompt, "prompt")))
        except ValueError as error:
            bad.append(f"{file}, line {number}: {error}")
    if bad and not questions:
        raise ValueError(f"{bad[0]}; no line holds a prompt")
    return list(questions.values()), bad


def read_answers(out: Path, made_by: dict) -> tuple[dict[str | int, str], int | None]:
    """{id: prompt} of what is answered, and how many bytes of the file are whole lines."""
    if not out.exists():
        return {}, None
    data, answered = read_bytes(out), {}
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        given = json_object(line)
        try:
            answered[given["id"]] = given["prompt"]
            made = {name: given[name] for name in made_by}
            made |= made.pop("settings")
        except (KeyError, TypeError, ValueError):
            no_answer = f"--out {out}: line {number} is no answer of this program"
            raise ValueError(f"{no_answer}; give another file") from None
        for name, value in {**made_by, **made_by["settings"]}.items():
            if name != "settings" and made.get(name) != value:
                begun = (
                    f"--out {out} was begun with {name} {made.get(name)!r:.60}, this is {value!r}"
                )
                raise ValueError(f"{begun}: give the same, or another file")
    return answered, whole
