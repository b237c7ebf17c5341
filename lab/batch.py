"""Many prompts: `--prompts in.jsonl --out out.jsonl`.

A line of the input is {"id": ..., "prompt": ...}; without an id its line number serves. A line of
the output repeats both, beside the answer, its counters and what made it. The lines come in the
order in which they are done, short prompts first, each batch on the disk before the next is begun:
a run that was stopped goes on where it was, and cuts off a torn last line.

Under torchrun each process answers its share of the batches. Left out on purpose: several runs that
write one file.
"""

import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from dllm import Result, check_prompt, generate, prepare
from lab import parallel
from lab.command_line import checked_plan, encode, find_model, open_model, print_counters
from lab.files import check_place, json_object, read_bytes, whole_text
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
    lines, out = read_bytes(args.prompts).splitlines(), Path(args.out)
    check_place("--out", args.out)
    if out.exists() and out.samefile(args.prompts):
        raise ValueError(f"--out {out} is the file of the prompts")
    flags = ("strategy", "model", "adapter", "dtype", "int8", "raw")
    made_by = {name: getattr(args, name) for name in flags} | {"settings": dict(settings)}
    made_by["model"] = args.model or "embedded"
    tokenizer, config, load = find_model(args)

    def encoded(prompt: str) -> list[int]:
        return check_prompt(encode(tokenizer, prompt, args.raw), config, chosen.gen_length)[0]

    questions, bad = read_questions(lines, encoded)
    answered, whole = read_answers(out, made_by)
    if changed := [q.id for q in questions if answered.get(q.id, q.prompt) != q.prompt]:
        raise ValueError(f"{out} has another prompt of the id {changed[0]!r}: give another --out")
    questions = sorted((q for q in questions if q.id not in answered), key=lambda q: len(q.ids))
    groups = [questions[i : i + size] for i in range(0, len(questions), size)]
    model = open_model(args, settings, load)
    if groups:  # is there memory for the largest?
        prepare(model, [q.ids for q in groups[-1]], args.strategy, settings)
    decode = partial(generate, model, strategy=args.strategy, **settings)

    def answer() -> None:
        print(*(f"{args.prompts}, {line}\n" for line in bad), sep="", end="", file=sys.stderr)
        total = work_off(groups, out, whole, decode, tokenizer, made_by)
        print_counters(args, total | {"bad_lines": len(bad)}, model.device, chosen.seed)
        if bad:
            sys.exit(1)

    return answer


def work_off(groups: list, out: Path, whole: int, decode, tokenizer, made_by: dict) -> dict:
    """Answer this process's share of the batches, and count what it took all of them.

    whole: bytes of `out` to keep; what stands behind them is half an answer
    """
    if parallel.rank() == 0:
        out.touch()
        os.truncate(out, whole)
    parallel.gathered(None)  # wait until it is there
    share = groups[parallel.rank() :: parallel.processes()]
    total = Counter(questions=0, forwards=0, rows=0, tokens=0, seconds=0.0)
    count = sum(map(len, share))
    with open(out, "ab", buffering=0) as file, tqdm(total=count, unit=" prompts") as bar:
        for group in share:
            result = decode([q.ids for q in group])
            records = [record(q, result, row, tokenizer) | made_by for row, q in enumerate(group)]
            lines = [json.dumps(each).encode() + b"\n" for each in records]
            file.write(b"".join(lines))  # at once: lines of several processes must not mix
            os.fsync(file.fileno())
            bar.update(len(group))
            counters = result.counters() | {"questions": len(group)}
            total.update({name: counters[name] for name in total})
    totals = parallel.gathered(total)
    seconds = max(each["seconds"] for each in totals)
    total = {name: sum(each[name] for each in totals) for name in total}
    speed = round(total["tokens"] / seconds, 1) if total["tokens"] else 0
    return total | {"seconds": round(seconds, 3), "tokens_per_second": speed}


def record(question: Question, result: Result, row: int, tokenizer) -> dict:
    asked = {"id": question.id, "prompt": question.prompt}
    counters = {"tokens": result.lengths[row], "forwards": result.forwards[row]}
    return asked | {"answer": tokenizer.decode(result.answer(row))} | counters


def read_questions(lines: list[bytes], encoded: Callable) -> tuple[list[Question], list[str]]:
    """The questions, and what is wrong with each line that holds none; empty lines are passed over.

    encoded: a prompt -> its ids, or ValueError if the model cannot take it
    """
    questions: dict[str | int, Question] = {}
    bad = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            asked = json_object(line)
            if asked is None:
                raise ValueError('expected an object, {"id": ..., "prompt": "..."}')
            name, prompt = asked.get("id", number), asked.get("prompt")
            require(type(name) in (str, int), "id", name, "a text or a whole number")
            require(isinstance(prompt, str), "prompt", prompt, "a text")
            if name in questions:
                raise ValueError(f"the id {name!r} has come before")
            questions[name] = Question(name, prompt, encoded(whole_text(prompt, "prompt")))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    return list(questions.values()), bad


def read_answers(out: Path, made_by: dict) -> tuple[dict[str | int, str], int]:
    """{id: prompt} of what is answered, and how many bytes of the file are whole lines."""
    data = read_bytes(out) if out.exists() else b""
    whole = data.rfind(b"\n") + 1
    answered = {}
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        given = json_object(line)
        try:
            answered[given["id"]] = given["prompt"]
            made = {name: given[name] for name in made_by}
        except (KeyError, TypeError):
            no_answer = f"--out {out}: line {number} is no answer of this program"
            raise ValueError(f"{no_answer}; give another file") from None
        for name, value in made_by.items():
            if made[name] != value:
                begun = f"--out {out} was begun with {name} {made[name]}, this is {value}"
                raise ValueError(f"{begun}: give the same, or another file")
    return answered, whole
