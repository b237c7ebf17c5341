"""Many prompts: `--prompts in.jsonl --out out.jsonl`.

A line of the input is {"id": ..., "prompt": ...}; without an id its line number serves. A line of the output repeats both, beside the answer and
its counters, so that it can be read alone; the lines come in the order in which they are done, short prompts first. A run that was stopped goes
on where it was: each batch is on the disk before the next is begun, a torn last line is cut off, and what is answered is not decoded again.

Under torchrun each process answers its share of the batches. Left out on purpose: several runs that write one file.
"""

import functools
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from options import check_prompt, require
from tqdm import tqdm

from dllm import Result, generate, prepare
from lab import parallel
from lab.command_line import checked_plan, find_model, open_model, tell, whole_text

BATCH_SIZE = 8


class Question(NamedTuple):
    id: str | int
    prompt: str
    ids: list[int]


def batch(args: Namespace, settings: dict) -> Callable[[], None]:
    """Check all there is to check, and return what answers the questions that have no answer yet."""
    _, chosen = checked_plan(args, settings)
    size = BATCH_SIZE if args.batch_size is None else args.batch_size
    require(size >= 1, "batch_size", size, "at least 1")
    lines = read_lines(args.prompts)
    check_out(args.prompts, args.out)
    made_by = {
        "strategy": args.strategy,
        "settings": dict(settings),
        "model": args.model or "embedded",
    }
    made_by |= {name: getattr(args, name) for name in ("adapter", "dtype", "int8", "raw")}
    tokenizer, config, load = find_model(args)
    answered, whole = read_answers(args.out, made_by)
    encode = (
        tokenizer.encode
        if args.raw
        else lambda text: tokenizer.encode_chat([{"role": "user", "content": text}])
    )
    questions, bad = read_questions(
        lines, encode, lambda ids: check_prompt(ids, config, chosen.gen_length)
    )
    if changed := [
        question.id
        for question in questions
        if answered.get(question.id, question.prompt) != question.prompt
    ]:
        raise ValueError(
            f"{args.out} answers another prompt of the id {changed[0]!r}: give another --out"
        )
    open_ones = sorted((q for q in questions if q.id not in answered), key=lambda q: len(q.ids))
    groups = [open_ones[i : i + size] for i in range(0, len(open_ones), size)]
    model = open_model(args, settings, load)
    if groups:
        prepare(
            model, [q.ids for q in groups[-1]], args.strategy, settings
        )  # the largest: is there the memory?

    def answer() -> None:
        for line in bad:
            print(f"{args.prompts}, {line}", file=sys.stderr)
        if parallel.rank() == 0:
            Path(args.out).touch()
            os.truncate(args.out, whole)
        parallel.gathered(None)  # wait until it is there
        decode = functools.partial(generate, model, strategy=args.strategy, **settings)
        totals = parallel.gathered(
            work_off(
                groups[parallel.rank() :: parallel.processes()],
                args.out,
                decode,
                tokenizer,
                made_by,
            )
        )
        total = {name: sum(each[name] for each in totals) for name in totals[0]} | {
            "seconds": max(each["seconds"] for each in totals)
        }
        total["tokens_per_second"] = total["tokens"] and round(
            total["tokens"] / total["seconds"], 1
        )
        tell(
            args,
            total | {"seconds": round(total["seconds"], 3), "bad_lines": len(bad)},
            model.device,
            chosen.seed,
        )
        if bad:
            sys.exit(1)

    return answer


def work_off(
    groups: list[list[Question]],
    out: str,
    decode: Callable[[list], Result],
    tokenizer,
    made_by: dict,
) -> dict[str, float]:
    """Answer one batch after the other, each on the disk before the next, and count what it took."""
    total = {"questions": 0, "forwards": 0, "rows": 0, "tokens": 0, "seconds": 0.0}
    with (
        open(out, "ab", buffering=0) as file,
        tqdm(total=sum(map(len, groups)), unit=" prompts") as bar,
    ):
        for group in groups:
            result = decode([q.ids for q in group])
            lines = [
                json.dumps(record(q, result, row, tokenizer) | made_by).encode() + b"\n"
                for row, q in enumerate(group)
            ]
            file.write(
                b"".join(lines)
            )  # at once, so that the lines of several processes do not mix
            os.fsync(file.fileno())
            bar.update(len(group))
            total = {
                name: value + result.counters().get(name, len(group))
                for name, value in total.items()
            }
    return total


def record(question: Question, result: Result, row: int, tokenizer) -> dict:
    counters = {"tokens": result.lengths[row], "forwards": result.forwards[row]}
    return {
        "id": question.id,
        "prompt": question.prompt,
        "answer": tokenizer.decode(result.answer(row)),
    } | counters


def read_lines(path: str) -> list[bytes]:
    try:
        return Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"--prompts {path} cannot be read: {error.strerror}") from None


def check_out(prompts: str, out: str) -> None:
    """Raise ValueError, naming the flag, if no answers can be written there; nothing is created."""
    folder = Path(out).parent
    if Path(out).is_dir() or not folder.is_dir():
        raise ValueError(
            f"--out {out}: "
            + ("that is a folder" if folder.is_dir() else f"there is no folder {folder}")
        )
    if Path(out).exists() and Path(out).samefile(prompts):
        raise ValueError(f"--out {out} is the file of the prompts")
    if not os.access(out if Path(out).exists() else folder, os.W_OK):
        raise ValueError(f"--out {out}: no permission to write there")


def read_questions(
    lines: list[bytes], encode: Callable, check: Callable
) -> tuple[list[Question], list[str]]:
    """The questions, and what is wrong with each line that holds none; empty lines are passed over."""
    questions: dict[str | int, Question] = {}
    bad = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse(line)
            name, prompt = record.get("id", number), record.get("prompt")
            require(
                isinstance(name, (str, int)) and not isinstance(name, bool),
                "id",
                name,
                "a text or a whole number",
            )
            require(isinstance(prompt, str), "prompt", prompt, "a text")
            if name in questions:
                raise ValueError(f"the id {name!r} has come before")
            ids = encode(whole_text(prompt, "prompt"))
            check(ids)
            questions[name] = Question(name, prompt, ids)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    return list(questions.values()), bad


def read_answers(out: str, made_by: dict) -> tuple[dict[str | int, str], int]:
    """{id: prompt} of what is answered, and how many bytes of the file are whole lines."""
    try:
        data = Path(out).read_bytes()
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise ValueError(f"--out {out} cannot be read: {error.strerror}") from None
    whole = data.rfind(b"\n") + 1
    answered = {}
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            record = parse(line)
            answered[record["id"]] = record["prompt"]
            made = {name: record[name] for name in made_by}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"--out {out}: line {number} is no answer of this program; give another file"
            ) from None
        if made != made_by:
            name = next(name for name in made_by if made[name] != made_by[name])
            raise ValueError(
                f"--out {out} was begun with {name} {made[name]}, this is {made_by[name]}: give the same, or another file"
            )
    return answered, whole


def parse(line: bytes) -> dict:
    """The object on a line; ValueError, in words, if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError('expected an object, {"id": ..., "prompt": "..."}')
    return record
