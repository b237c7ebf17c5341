"""Many prompts: `--prompts in.jsonl --out out.jsonl`.

A line of the input is {"id": ..., "prompt": ...}; without an id its line number serves. A line of
the output repeats both, beside the answer, its counters and what made it. The lines come in the
order in which they are done, short prompts first, each batch on the disk before the next is begun:
a run that was stopped goes on where it was, and cuts off a torn last line.

Under torchrun each process answers its share of the batches. Left out on purpose: several runs that
write one file; the second is refused.
"""

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from dllm import Result, Settings, StepLimit, check_prompt, generate, prepare
from lab import parallel
from lab.command_line import checked_plan, encode, find_model, open_model, print_counters
from lab.files import check_place, json_object, read_bytes, whole_text
from lab.journal import Journal, resolved
from strategies import require

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
        journal = stack.enter_context(Journal(args.out))
        answered = {}
        for number, line in enumerate(journal.read(("prompt",)), start=1):
            journal.check_maker(number, line, made_by)
            answered[line["id"]] = line["prompt"]
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
            total = work_off(groups, journal, decode, tokenizer, made_by)
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
    made_by |= resolved(args.strategy, vars(args), chosen)
    return json.loads(json.dumps(made_by))  # as it is read again


def work_off(groups: list, journal: Journal, decode, tokenizer, made_by: dict) -> dict:
    """Answer this process's share of the batches, and count what it took all of them."""
    journal.begin()
    share, failed = groups[parallel.rank() :: parallel.processes()], []
    total = Counter(questions=0, forwards=0, rows=0, tokens=0, seconds=0.0, unanswered=0)
    with tqdm(total=sum(map(len, share)), unit=" prompts") as bar:
        for group in share:
            try:
                result = decode([q.ids for q in group])
            except StepLimit as error:
                failed.append(f"no answer to {', '.join(repr(q.id) for q in group)}: {error}\n")
                total["unanswered"] += len(group)
            else:
                journal.add(
                    [record(q, result, i, tokenizer) | made_by for i, q in enumerate(group)]
                )
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
