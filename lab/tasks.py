"""Tasks whose answers can be checked exactly: stories solved step by step, sums, sorting.

Left out on purpose: anything that needs knowledge of the world, and answers that copy words. An
answer is made of numbers, signs and the words `The answer is`, so that a model of a few million
parameters can learn to write it in an hour.

    Tom has 12 apples. He buys 7 more and gives away 5. How many apples does Tom have?
    12 + 7 = 19. 19 - 5 = 14. The answer is 14.

A problem is a pure function of (task, seed, index): the same on every machine. A hash of its
*answer* decides whether it is for training or held out, so no held-out solution was ever trained
on, under whatever names and objects its story was told.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

LIMIT = 199  # no number is larger
TABLE = 12  # products and quotients are those of the multiplication table up to here
HELD_OUT = 0.1  # the share of solutions kept out of training

Steps = list[tuple[int, str, int]]  # (left, sign, right) of each equation, in order


@dataclass(frozen=True)
class Problem:
    task: str
    prompt: str
    answer: str  # the solution we teach; check() may accept others


# ---- Words. Adding one takes a line in stories.txt, one in words.txt, and a new tokenizer.


def read_forms() -> SimpleNamespace:
    """The lists of stories.txt: of words, or of forms with semicolons between them."""
    lists = {}
    text = Path(__file__).with_name("stories.txt").read_text(encoding="utf-8")
    for name, items in re.findall(r"^(\w+):((?: .+\n)+)", text, re.MULTILINE):
        parts = items.split(";") if "{" in items or ";" in items else items.split()
        lists[name] = [" ".join(part.split()) for part in parts]
    return SimpleNamespace(**lists)


SAY = read_forms()
ONE = dict(form.split("/") for form in SAY.irregular)  # plural to singular
ENDS = ["", "", " now", " now", " in the end", " at the end"]
LEFT, IN_ALL = [" left", " left now"], [" in total", " in all", " altogether"]


def told(form: str, **slots) -> str:
    """Fill the slots of a form. tense: 0, the word before each slash, the default, or 1, behind."""
    return re.sub(r"(\w+)/(\w+)", rf"\{1 + slots.get('tense', 0)}", form).format(**slots)


def one(things: str) -> str:
    return ONE.get(things, things[:-1])


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def number(rng: Random, most: int = LIMIT) -> int:
    """Mostly small: a third of the numbers end at 12, a third at 40, a third at 99."""
    return rng.randint(2, max(2, min(most, rng.choice((12, 40, 99)))))


def value(left: int, sign: str, right: int) -> int:
    """The result of a step: stories divide where nothing is left over."""
    return {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]


def running_total(numbers: list[int]) -> Steps:
    return [(total, "+", k) for total, k in zip(accumulate(numbers), numbers[1:])]


def equations(steps: Steps) -> str:
    return " ".join(f"{a} {sign} {b} = {value(a, sign, b)}." for a, sign, b in steps)


def solution(steps: Steps) -> str:
    return f"{equations(steps)} The answer is {value(*steps[-1])}."


# ---- Stories. Each kind returns (prompt, steps).


def invented(rng: Random) -> str:
    """A word nobody knows, now and then, so that a visitor's own words do not confuse the model."""
    letters = ["bcdfghjklmnprstvwz", "aeiou"] * rng.randint(2, 3) + ["nrlts"]
    return "".join(map(rng.choice, letters))


def cast(rng: Random) -> dict:
    """Draw who and what a story is about: the slots that the forms leave open, but for {k}."""
    names, he, him, his = rng.choice(((SAY.he, "he", "him", "his"), (SAY.she, "she", "her", "her")))
    name, friend = rng.choice(names), rng.choice(SAY.he + SAY.she)
    food = rng.random() < 0.4
    things = rng.choice(SAY.food if food else SAY.things)
    if rng.random() < 0.05:
        name = invented(rng).capitalize()
    if rng.random() < 0.05:
        things = invented(rng) + "s"
    while friend == name:
        friend = rng.choice(SAY.he + SAY.she)
    who = {"name": name, "friend": friend, "he": he, "He": he.capitalize(), "him": him, "his": his}
    return who | {"things": things, "thing": one(things), "food": food}


def phrase(rng: Random, who: dict, k: int, kinds: list[str]) -> str:
    form, helper = rng.choice(kinds), f"{who['his']} {rng.choice(SAY.helpers)}"
    return told(form, k=k, to=rng.choice((who["friend"], who["friend"], helper)), **who)


def chain(rng: Random, count: int) -> tuple[str, Steps]:
    """Somebody has some things, and then things happen: the story most problems tell."""
    who = cast(rng) | {"tense": rng.randrange(2)}
    person = who["person"] = rng.random() < 0.85
    first, steps, now = opening(rng, who)
    ending = rng.choice("/*") if rng.random() < 0.15 and len(steps) < count else ""
    clauses = []  # (text, whether its subject is the person of the story)
    while len(steps) < count - bool(ending):
        up = now < 3 or rng.random() < 0.5
        k = number(rng, LIMIT - now) if up else number(rng, now - 1)
        own = person and rng.random() < 0.85
        if own:
            kinds = SAY.gain if up else SAY.loss + SAY.eat * who["food"]
        elif person:
            kinds = SAY.given if up else SAY.taken
        else:
            kinds = SAY.comes if up else SAY.goes
        clauses.append((phrase(rng, who, k, kinds), own))
        steps.append((now, "+" if up else "-", k))
        now = value(*steps[-1])
    told_so_far = narrate(rng, who, first, clauses)
    return f"{told_so_far}. {question(rng, who, ending, steps, now)}", steps


def opening(rng: Random, who: dict) -> tuple[str, Steps, int]:
    """The first sentence, the step it takes, if any, and how many things there then are."""
    have, place, steps = told("has/had", **who), "", []
    if rng.random() < 0.25:  # boxes of things: the first step multiplies
        a, b, boxes = rng.randint(2, TABLE), rng.randint(2, TABLE), rng.choice(SAY.boxes)
        things = told(rng.choice(SAY.each), a=a, b=b, boxes=boxes, box=one(boxes), **who)
        verb = rng.choice((have, told("buys/bought", **who))) if who["person"] else ""
        steps, now = [(a, "*", b)], a * b
    else:
        now = number(rng)
        verb = have if rng.random() < 0.8 else told(rng.choice(SAY.start), **who)
        things = f"{now} {who['things']}"
        place = "" if who["person"] else f" in {rng.choice(SAY.places)}"
    if who["person"]:
        return f"{who['name']} {verb} {things}", steps, now
    return told("There are/were ", **who) + things + place, steps, now


def narrate(rng: Random, who: dict, first: str, clauses: list[tuple[str, bool]]) -> str:
    """Join some clauses of the same subject by "and", and begin the others each in its own way."""
    sentences, joined = [first], who["person"]  # joined: whether the next clause may be
    for text, own in clauses:
        if own and joined and rng.random() < 0.4:
            sentences[-1] += rng.choice((" and ", " and ", " and then ", ", then ")) + text
            joined = False
        else:
            subject = rng.choice((who["he"], who["he"], who["name"])) + " " if own else ""
            lead = rng.choice(("", "", "Then ", "Later ", "Next, ", "After that, "))
            sentence = lead + subject + text
            sentences.append(sentence[0].upper() + sentence[1:])
            joined = own
    return ". ".join(sentences)


def question(rng: Random, who: dict, ending: str, steps: Steps, now: int) -> str:
    """Ask for what there is now, or for one more step: shared (/), or sold for so much each (*)."""
    slots = who if who["person"] else who | {"He": "She", "he": "she"}
    if ending == "/":
        fit = [k for k in range(2, TABLE + 1) if now % k == 0 and now // k <= TABLE]
        if k := rng.choice(fit or [0]):
            steps.append((now, "/", k))
            shared = rng.random() < 0.5
            does = rng.choice(SAY.share) if shared else SAY.pack[0]
            return told(
                f"{does} {rng.choice(SAY.ask_share if shared else SAY.ask_pack)}", k=k, **slots
            )
    if ending == "*" and now <= TABLE:
        k = rng.randint(2, 9)
        steps.append((now, "*", k))
        sells, money = rng.choice(SAY.sell), rng.choice(SAY.money)
        ask = f"How {money} does/did {{he}} {rng.choice(('get', 'make', 'earn'))}?"
        return told(f"{sells} {ask}", k=k, **slots)
    end = rng.choice(ENDS + (LEFT if steps and steps[-1][1] == "-" else IN_ALL))
    if who["person"]:
        have = rng.choice(("does {name} have", "does {name} have", "does {he} have"))
        return told(f"How many {{things}} {have}{end}?", **who)
    total = "" if end else rng.choice(("", "", " in total"))
    return f"How many {who['things']}{total} are there{end}?"


def pair(rng: Random, count: int) -> tuple[str, Steps]:
    """Two people, one of whom has more, fewer or times as many: how many, or both together?"""
    who = cast(rng) | {"tense": rng.choice((0, 0, 1))}
    sign = rng.choice("+-*")
    if sign == "*":
        a, b = number(rng, TABLE), rng.randint(2, 6)
    else:
        a = number(rng) + 1
        b = number(rng, a - 1)
    relation = rng.choice(SAY.times if sign == "*" else SAY.more)
    steps = [(a, sign, b)]
    ask = "does/did {friend} have"
    if count == 2:
        steps.append((a, "+", value(*steps[0])))
        ask = f"do/did they have {rng.choice(SAY.together)}"
    form = f"{{name}} has/had {{a}} {{things}}. {{friend}} has/had {relation}."
    word = "more" if sign == "+" else "fewer"
    return told(f"{form} How many {{things}} {ask}?", a=a, b=b, word=word, **who), steps


def together(rng: Random, count: int) -> tuple[str, Steps]:
    """Several people put together what they have: count + 1 numbers to add."""
    who, numbers = cast(rng), [number(rng, LIMIT // (count + 1)) for _ in range(count + 1)]
    things = who["things"]
    names = rng.sample([name for name in SAY.he + SAY.she if name != who["name"]], count)
    more = [f"{n} has {k}{rng.choice(('', ' ' + things))}" for n, k in zip(names, numbers[1:])]
    each = [f"{who['name']} has {numbers[0]} {things}", *more]
    have = f"{', '.join(each[:-1])} and {each[-1]}" if rng.random() < 0.6 else ". ".join(each)
    ask = f"How many {things} do they have {rng.choice(SAY.together)}?"
    return f"{have}. {ask}", running_total(numbers)


def price(rng: Random, count: int) -> tuple[str, Steps]:
    """A purchase: one step asks for the price, two for the change."""
    who, a, b = cast(rng), rng.randint(2, TABLE), rng.randint(2, TABLE)
    steps, buys = [(a, "*", b)], rng.choice(SAY.cost)
    slots = who | {"a": a, "b": b, "buyer": who["name"]}
    if count == 1:
        return told(f"{buys}. {rng.choice(SAY.ask_cost)}", **slots), steps
    paid = a * b + number(rng, LIMIT - a * b)
    steps.append((paid, "-", a * b))
    if rng.random() < 0.5:
        buys += f" and pays with {paid} dollars. {rng.choice(SAY.ask_change)}"
        return told(buys, **slots), steps
    if buys.startswith("{buyer}"):
        slots["buyer"] = who["He"]
    ask = f"How {rng.choice(SAY.money)} does {{he}} have left?"
    return told(f"{{name}} has {paid} dollars. {buys}. {ask}", **slots), steps


def story(rng: Random, count: int) -> tuple[str, str]:
    """A story that takes exactly `count` steps."""
    kinds = [chain] * 6 + [together, pair, price] if count < 3 else [chain] * 8 + [together]
    while True:  # some find nothing to divide by, others grow too large: tell a new one
        kind = chain if count > 3 else rng.choice(kinds)
        prompt, steps = kind(rng, count)
        if len(steps) == count and max(value(*step) for step in steps) <= LIMIT:
            return prompt, solution(steps)


def calculation(rng: Random) -> tuple[int, str, int]:
    sign = rng.choice("++-*")
    if sign == "*":
        return rng.randint(2, TABLE), sign, rng.randint(2, TABLE)
    a = number(rng, LIMIT - 2)
    return a, sign, number(rng, LIMIT - a if sign == "+" else a)


def add(rng: Random) -> tuple[str, str]:
    a, sign, b = calculation(rng)
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    ask = rng.choice(SAY.add + SAY.add_two * (sign == "+"))
    return ask.format(sum=f"{a} {sign} {b}", a=a, b=b, word=word), solution([(a, sign, b)])


def drill(rng: Random) -> tuple[str, str]:
    """Up to 17 calculations of their own: what a parallel decoder may do all at once."""
    steps = [calculation(rng) for _ in range(rng.randint(2, rng.choice((4, 8, 17))))]
    *asked, last = (f"{left} {sign} {right}" for left, sign, right in steps)
    return rng.choice(SAY.drill).format(", ".join(asked), last), equations(steps)


def total(rng: Random) -> tuple[str, str]:
    """A running total of up to 12 numbers: the longest chain of steps there is."""
    count = rng.randint(3, rng.choice((5, 8, 12)))
    numbers = [number(rng, LIMIT // count) for _ in range(count)]
    last = f"{listed(numbers[:-1])} and {numbers[-1]}"
    ask = rng.choice(SAY.total).format(last=last, all=listed(numbers))
    return ask, solution(running_total(numbers))


def compare(rng: Random) -> tuple[str, str]:
    a = number(rng)
    b = number(rng) if rng.random() < 0.7 else max(2, a + rng.randint(-9, 9))
    b += a == b
    larger = rng.random() < 0.5
    word = rng.choice(("larger", "bigger", "greater") if larger else ("smaller", "less"))
    ask = rng.choice(SAY.compare).format(word=word, a=a, b=b)
    right = max(a, b) if larger else min(a, b)
    return ask, f"{a} {'<' if a < b else '>'} {b}. The answer is {right}."


def sort(rng: Random) -> tuple[str, str]:
    numbers = rng.sample(range(100), rng.randint(3, 6))
    return rng.choice(SAY.sort).format(listed(numbers)), f"The answer is {listed(sorted(numbers))}."


def reverse(rng: Random) -> tuple[str, str]:
    numbers = [rng.randrange(100) for _ in range(rng.randint(3, 8))]
    ask = rng.choice(SAY.reverse).format(listed(numbers))
    return ask, f"The answer is {listed(numbers[::-1])}."


class Task(NamedTuple):
    make: Callable[[Random], tuple[str, str]]  # -> prompt, answer
    share: int  # of the training data, in percent
    polish: int  # of those of the polish, which has more of what is hard


TASKS = {
    "one-step": Task(partial(story, count=1), 12, 5),
    "two-step": Task(partial(story, count=2), 18, 8),
    "three-step": Task(partial(story, count=3), 15, 11),
    "four-step": Task(partial(story, count=4), 13, 15),
    "add": Task(add, 6, 3),
    "drill": Task(drill, 10, 16),
    "total": Task(total, 9, 16),
    "compare": Task(compare, 5, 12),
    "sort": Task(sort, 7, 11),
    "reverse": Task(reverse, 5, 3),
}


def check(problem: Problem, text: str) -> bool:
    """Is `text`, without its EOS, the taught steps in the taught form? + and * may swap numbers."""
    return in_order(text) == in_order(problem.answer)


def in_order(text: str) -> str:
    """7 + 12 -> 12 + 7: by text, not by value, so that 007 stays what it is."""
    swap = lambda match: "{0} {2} {1}".format(*sorted((match[1], match[3])), match[2])
    return re.sub(r"([0-9]+) ([+*]) ([0-9]+)", swap, text)


def is_held_out(answer: str) -> bool:
    """Decided by sha256 of the answer, not by Python's hash(), which is salted in every process."""
    return int.from_bytes(hashlib.sha256(answer.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def problems(
    seed: str | int, task: str | None = None, held_out: bool = False, polish: bool = False
) -> Iterator[Problem]:
    """Yield problems without end: of one task, or of all in their shares, or the polish's."""
    rng = Random(f"{seed}")  # a string is hashed by sha512: the same stream on every machine
    shares = [t.polish if polish else t.share for t in TASKS.values()]
    while True:
        name = task or rng.choices(list(TASKS), shares)[0]
        prompt, answer = TASKS[name].make(rng)
        if is_held_out(answer) == held_out:
            yield Problem(name, prompt, answer)
