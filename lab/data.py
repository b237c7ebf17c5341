"""Where the problems of a comparison come from, and which answers to them are right.

`Tasks` are those of lab/tasks.py, whose solutions are checked step by step. `Data` is a file of
JSON lines, such as {"question": ..., "answer": ...}: an answer is right if the last number in it,
or the last match of another pattern, is that of the line; or if a function of one's own says so.

Left out on purpose: downloads, formats other than JSON lines, answers that a model judges.
"""

import inspect
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from lab import own_rule
from lab.files import json_object, read_bytes, whole_text
from lab.journal import hash_of
from lab.tasks import TASKS, Problem, check, problems
from strategies import require

STORIES = ("one-step", "two-step", "three-step", "four-step")
# 42, 1,234.50 or -$7: a minus behind a number subtracts
NUMBER = r"(?:(?<![\d.)])-)?[$€£¥]?\d[\d,]*(?:\.\d+)?"
WAYS = ("one", "many", "raw")  # all shots in the user's turn, each a turn of its own, no template
JUDGES = ("question", "answer", "gold", "extract", "check", "few_shot", "turns", "until")


class Item(NamedTuple):
    """A problem as contenders get it."""

    id: str | int
    prompt: list[dict] | str  # turns for the chat template, or a text as it is
    gold: str | None  # what is right, where that is a text
    judge: Callable[[str], dict]  # what is said of an answer: text, extracted, right
    special: bool = False  # whether special tokens stay in that answer

    def text(self, tokenizer) -> str:
        """The prompt as the tokenizer gets it."""
        whole = isinstance(self.prompt, str)
        return self.prompt if whole else tokenizer.render(self.prompt, True)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


class Tasks:
    """The held-out problems of --task: of some tasks, `stories`, or all."""

    extracts, lists, judged_by = False, False, {}

    def __init__(self, args: Namespace):
        for name in JUDGES:
            if getattr(args, name, None) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs --data")
        text = args.task
        self.names = list(STORIES) if text == "stories" else text.split(",") if text else [*TASKS]
        for name in self.names:
            require(name in TASKS, "task", name, f"stories, or of {', '.join(TASKS)}")
        self.seed, self.limit = args.seed, args.limit or 100
        self.count = self.limit * len(self.names)
        self.about = f"{self.limit} held-out problems of each task, seed {self.seed}"

    def items(self, task: str) -> Iterator[Item]:
        stream = islice(problems(self.seed, task, held_out=True), self.limit)
        return (of_task(f"{task} {self.seed} {i}", problem) for i, problem in enumerate(stream))


def of_task(name: str, problem: Problem) -> Item:
    judge = lambda text: {"text": text, "extracted": None, "right": check(problem, text)}
    return Item(name, [user(problem.prompt)], problem.answer, judge, special=True)


class Data:
    """The problems of --data; whatever is wrong with a line is said before any work.

    extracts: whether right is what was found; lists: whether all problems are known beforehand
    judged_by: what decides beside the problem whether an answer is right
    """

    lists = True

    def __init__(self, args: Namespace):
        if args.task is not None:
            raise ValueError("--task has no meaning with --data")
        if args.check and (args.gold or args.extract):
            other = "--gold" if args.gold else "--extract"
            raise ValueError(f"{other} has no meaning with --check, which says what is right")
        self.question, self.answer = args.question or "question", args.answer or "answer"
        self.file, self.turns, self.until = args.data, args.turns or "one", args.until or []
        if "" in self.until:
            raise ValueError("--until is empty: give a text at which an answer ends")
        extract = args.extract or NUMBER
        self.extract = pattern("--extract", extract)
        self.gold = pattern("--gold", args.gold or extract)
        self.check = args.check and checking(args.check)
        shots = read_lines(args.few_shot, self.fields()) if args.few_shot else {}
        self.shots = [[str(line[field]) for field in self.fields()] for line in shots.values()]
        self.lines = read_lines(args.data, self.fields() if not args.check else [self.question])
        self.own = [self.item(*line) for line in islice(self.lines.items(), args.limit)]
        self.names, self.count, self.extracts = (
            [Path(args.data).stem],
            len(self.own),
            not args.check,
        )
        self.judged_by = {"until": self.until, "check": args.check}
        self.judged_by |= {"check_hash": args.check and hash_of(args.check)}
        self.judged_by |= {"extract": None if args.check else extract}
        shots = f" behind {len(self.shots)} shots" * bool(self.shots)
        self.about = f"{self.count} problems of {args.data}{shots}, turns {self.turns}"

    def fields(self) -> list[str]:
        return [self.question, self.answer]

    def items(self, name: str) -> Iterator[Item]:
        return iter(self.own)

    def item(self, name: str | int, line: dict) -> Item:
        gold = None if self.check else found(self.gold, str(line[self.answer]))
        if gold is None and not self.check:
            wrong = f"the {self.answer} of {name!r} has no match of {self.gold.pattern!r:.60}"
            raise ValueError(f"{self.file}: {wrong}")
        return Item(
            name, self.prompt(str(line[self.question])), gold, partial(self.judge, line, gold)
        )

    def prompt(self, question: str) -> list[dict] | str:
        """The shots and the question, as --turns says."""
        if self.turns == "many":
            said = ([user(q), {"role": "assistant", "content": a}] for q, a in self.shots)
            return [*chain(*said), user(question)]
        text = "\n\n".join([*("\n".join(shot) for shot in self.shots), question])
        return text if self.turns == "raw" else [user(text)]

    def judge(self, line: dict, gold: str | None, text: str) -> dict:
        text = cut(text, self.until)
        if self.check:
            right = self.check(line, text)
            require(isinstance(right, bool), "what --check gives back", right, "True or False")
            return {"text": text, "extracted": None, "right": right}
        last = found(self.extract, text)
        return {"text": text, "extracted": last, "right": last == gold}


def cut(text: str, until: list[str]) -> str:
    """The text before the first of these ends."""
    for end in filter(None, until):
        text = text.partition(end)[0]
    return text


def source_of(args: Namespace) -> Tasks | Data:
    return Tasks(args) if getattr(args, "data", None) is None else Data(args)


def batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while chosen := list(islice(items, size)):
        yield chosen


def pattern(flag: str, text: str) -> re.Pattern:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of patterns that may mean another one day
            return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{flag} {text!r:.60} is no pattern: {error}") from None


def found(wanted: re.Pattern, text: str) -> str | None:
    """The last match, its first group that took part if it has groups, without commas, currency
    and a full stop at its end."""
    last = None
    for last in wanted.finditer(text):
        pass
    if last is None:
        return None
    whole = next((group for group in last.groups() if group), last[0])
    return re.sub("[,$€£¥]", "", whole).strip().removesuffix(".")


def checking(name: str) -> Callable[[dict, str], bool]:
    """The function that --check names."""
    if not name.rpartition(":")[0].endswith(".py"):
        raise ValueError(f"--check {name!r:.60}: expected FILE.py:FUNCTION")
    function = own_rule.function_of(name)
    with own_rule.in_one_line(f"--check {name}: a check takes (line, text)"):
        inspect.signature(function).bind({}, "")
    return function


def read_lines(file: str, fields: list[str]) -> dict[str | int, dict]:
    """{id: line} of a file of JSON lines that have these fields; without an id its number is it."""
    lines: dict[str | int, dict] = {}
    for number, text in enumerate(read_bytes(file).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json_object(text)
            require(line is not None, "the line", text.decode(errors="replace"), "an object")
            name = line.get("id", number)
            require(type(name) in (str, int), "id", name, "a text or a whole number")
            require(name not in lines, "id", name, "another than lines before have")
            for field in fields:
                has = f"a text: the line has {', '.join(map(repr, islice(line, 9))) or 'nothing'}"
                require(type(line.get(field)) in (str, int, float), field, line.get(field), has)
                whole_text(str(line[field]), field)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        lines[name] = line
    if not lines:
        raise ValueError(f"{file} holds no line")
    return lines
