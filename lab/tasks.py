"""Tasks whose answers can be checked exactly: grade-school stories solved step by step, sums, comparing, sorting, reversing.

Left out on purpose: anything that needs knowledge of the world, and answers that copy words. An answer is made of numbers, signs and
the words `The answer is`, so that a model of a few million parameters can learn to write it in an hour.

    Tom has 12 apples. He buys 7 more and gives away 5. How many apples does Tom have?
    12 + 7 = 19. 19 - 5 = 14. The answer is 14.

A problem is a pure function of (task, seed, index): the same on every machine. A hash of its *answer* decides whether it is for training or
held out, so no held-out solution was ever trained on, under whatever names and objects its story was told.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

LIMIT = 199  # no number is larger
TABLE = 12  # products and quotients are those of the multiplication table up to here
HELD_OUT = 0.1  # the share of solutions kept out of training

Random = random.Random
Steps = list[tuple[int, str, int]]  # (left, sign, right) of each equation, in order


@dataclass(frozen=True)
class Problem:
    task: str
    prompt: str
    answer: str  # the solution we teach; check() may accept others


@dataclass(frozen=True)
class Task:
    make: Callable[[Random], tuple[str, str]]  # -> prompt, answer
    check: Callable[[Problem, str], bool]
    share: int  # of the training data, in percent
    polish: int  # of those of the polish, which has more of what is hard


# ---- Words. Adding one takes a line here, one in words.txt, and a new tokenizer.

HE = "Tom Sam Ben Max Leo Jack Adam Paul Mark Luke Omar Ravi Ivan Hugo Finn Noah Liam Carlos John Peter David James Bob Alex".split()
SHE = "Ann Mia Eva Zoe Lily Sara Emma Nina Ella Ruth Maya Aisha Mei Olga Rosa Jane Mary Kate Lucy Anna Alice Sofia Maria Julia".split()
FOOD = "apples oranges pears plums cookies lemons eggs nuts grapes carrots bananas peaches candies cakes muffins tomatoes".split()
THINGS = """marbles pens books coins stamps shells stickers cards balls toys beads buttons pencils stones flowers blocks balloons cups
keys bottles ribbons crayons tickets dolls hats photos leaves badges rings plants magnets puzzles""".split()
BOXES = "boxes bags baskets jars packs bowls trays shelves".split()
PLACES = "a box,a bag,a basket,a jar,a room,a shop,a garden,a drawer,the kitchen,the house,the library,the store".split(",")
HELPERS = "friend,brother,sister,mother,father,uncle,aunt,teacher,neighbor,grandmother,grandfather,cousin".split(",")
ONE = {"boxes": "box", "shelves": "shelf", "leaves": "leaf", "peaches": "peach", "candies": "candy", "tomatoes": "tomato"}

# Present and past of what a person does; {k} is the number, {to} somebody else, {things} what is counted.
GAIN = [
    ("buys {k} more", "bought {k} more"),
    ("buys {k} {things}", "bought {k} {things}"),
    ("buys {k} more {things}", "bought {k} more {things}"),
    ("finds {k} more", "found {k} more"),
    ("finds {k} {things}", "found {k} {things}"),
    ("gets {k} more", "got {k} more"),
    ("gets {k} more {things}", "got {k} more {things}"),
    ("gets {k} from {to}", "got {k} from {to}"),
    ("gets {k} {things} from {to}", "got {k} {things} from {to}"),
    ("receives {k} more", "received {k} more"),
    ("receives {k} from {to}", "received {k} from {to}"),
    ("collects {k} more", "collected {k} more"),
    ("wins {k} more", "won {k} more"),
    ("makes {k} more", "made {k} more"),
    ("picks {k} more", "picked {k} more"),
    ("picks up {k} more", "picked up {k} more"),
    ("adds {k} more", "added {k} more"),
    ("takes {k} from {to}", "took {k} from {to}"),
]
LOSS = [
    ("gives away {k}", "gave away {k}"),
    ("gives {k} away", "gave {k} away"),
    ("gives away {k} {things}", "gave away {k} {things}"),
    ("gives {k} to {to}", "gave {k} to {to}"),
    ("gives {k} {things} to {to}", "gave {k} {things} to {to}"),
    ("gives {to} {k}", "gave {to} {k}"),
    ("gives {to} {k} {things}", "gave {to} {k} {things}"),
    ("gives {k} of them to {to}", "gave {k} of them to {to}"),
    ("sells {k}", "sold {k}"),
    ("sells {k} {things}", "sold {k} {things}"),
    ("sells {k} of them", "sold {k} of them"),
    ("loses {k}", "lost {k}"),
    ("loses {k} {things}", "lost {k} {things}"),
    ("loses {k} of them", "lost {k} of them"),
    ("uses {k}", "used {k}"),
    ("uses {k} of them", "used {k} of them"),
    ("throws away {k}", "threw away {k}"),
    ("breaks {k}", "broke {k}"),
    ("drops {k}", "dropped {k}"),
]
EAT = [("eats {k}", "ate {k}"), ("eats {k} {things}", "ate {k} {things}"), ("eats {k} of them", "ate {k} of them")]
START = [("buys", "bought"), ("finds", "found"), ("picks", "picked"), ("collects", "collected"), ("makes", "made"), ("gets", "got")]
# What somebody else does, as a whole sentence.
GIVEN = [("{to} gives {him} {k} more", "{to} gave {him} {k} more"), ("{to} gives {him} {k} {things}", "{to} gave {him} {k} {things}")]
TAKEN = [("{to} takes {k}", "{to} took {k}"), ("{to} takes {k} of them", "{to} took {k} of them"), ("{k} are lost", "{k} were lost")]
# What happens where nobody is named: "There are 12 apples in a box."
COMES = [
    ("{to} puts in {k} more", "{to} put in {k} more"),
    ("{to} adds {k}", "{to} added {k}"),
    ("{to} adds {k} more {things}", "{to} added {k} more {things}"),
    ("{to} brings {k} more", "{to} brought {k} more"),
    ("{k} more are added", "{k} more were added"),
]
GOES = [
    ("{to} takes out {k}", "{to} took out {k}"),
    ("{to} takes {k}", "{to} took {k}"),
    ("{to} takes away {k}", "{to} took away {k}"),
    ("{to} removes {k} {things}", "{to} removed {k} {things}"),
    ("{k} are sold", "{k} were sold"),
    ("{k} {things} are taken out", "{k} {things} were taken out"),
]


# How a story begins with boxes of things, and how it ends with one more step.
EACH = ["{a} {boxes} of {b} {things} each", "{a} {boxes} with {b} {things} in each {box}", "{a} {boxes} with {b} {things} each"]
SHARE = [
    ("{He} shares them equally among {k} friends. ", "{He} shared them equally among {k} friends. "),
    ("{He} shares the {things} equally among {k} friends. ", "{He} shared the {things} equally among {k} friends. "),
    ("{He} shares all of them equally among {k} friends. ", "{He} shared all of them equally among {k} friends. "),
]
ASK_SHARE = ["How many {does} each friend get?", "How many {things} {does} each friend get?"]
PACK = ("{He} packs them into bags of {k}. ", "{He} packed them into bags of {k}. ")
ASK_PACK = ["How many bags are there?", "How many bags {does} {he} need?", "How many bags {does} {he} fill?"]
SELL = [
    ("{He} sells all of them for {k} dollars each. ", "{He} sold all of them for {k} dollars each. "),
    ("{He} sells them for {k} dollars each. ", "{He} sold them for {k} dollars each. "),
    ("{He} sells them all for {k} dollars each. ", "{He} sold them all for {k} dollars each. "),
    ("{He} sells all the {things} for {k} dollars each. ", "{He} sold all the {things} for {k} dollars each. "),
]
COST = [
    "One {thing} costs {b} dollars. {buyer} buys {a} {things}",
    "{buyer} buys {a} {things} for {b} dollars each",
    "{buyer} buys {a} {things} that cost {b} dollars each",
]
ASK_COST = ["How much does {he} pay?", "How many dollars does {he} pay?", "How much money does {he} spend?", "How much do they cost?"]
IN_ALL = ["in total", "in all", "altogether"]
TOGETHER = ["together", "in all", "in total", "altogether"]


# ---- Numbers


def number(rng: Random, most: int = LIMIT) -> int:
    """Mostly small: a third of the numbers end at 12, a third at 40, a third at 99."""
    return rng.randint(2, max(2, min(most, rng.choice((12, 40, 99)))))


def value(left: int, sign: str, right: int) -> int:
    """The result of one step. A division that leaves a rest is a bug in a story, or a wrong answer: it has no value here."""
    if sign == "/":
        return left // right if right and left % right == 0 else -1
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def equations(steps: Steps) -> str:
    return " ".join(f"{left} {sign} {right} = {value(left, sign, right)}." for left, sign, right in steps)


def solution(steps: Steps) -> str:
    return equations(steps) + f" The answer is {value(*steps[-1])}."


# ---- Stories. Each kind returns (prompt, steps).


def invented(rng: Random) -> str:
    """A word nobody knows. A few names and objects are such, so that a visitor's own words do not confuse the model."""
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))) + rng.choice("nrlts")


def one(things: str) -> str:
    return ONE.get(things, things[:-1])


def cast(rng: Random) -> dict[str, str]:
    """Draw who and what a story is about: the slots that the phrases above leave open, but for {k}."""
    who, he, him, his = rng.choice(((HE, "he", "him", "his"), (SHE, "she", "her", "her")))
    name, friend = rng.choice(who), rng.choice(HE + SHE)
    food = rng.random() < 0.4
    things = rng.choice(FOOD if food else THINGS)
    if rng.random() < 0.05:
        name = invented(rng).capitalize()
    if rng.random() < 0.05:
        things = invented(rng) + "s"
    while friend == name:
        friend = rng.choice(HE + SHE)
    return dict(name=name, friend=friend, he=he, him=him, his=his, things=things, thing=one(things), food=food)


def someone(rng: Random, who: dict) -> str:
    return rng.choice((who["friend"], who["friend"], f"{who['his']} {rng.choice(HELPERS)}"))


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def phrase(rng: Random, forms: list, tense: int, who: dict, k: int) -> str:
    return rng.choice(forms)[tense].format(k=k, to=someone(rng, who), **who)


def chain(rng: Random, count: int) -> tuple[str, Steps]:
    """Somebody has some things, and then things happen: the story most problems tell."""
    who, tense = cast(rng), rng.randrange(2)
    person = rng.random() < 0.85
    steps: Steps = []
    have, are = ("has", "had")[tense], ("are", "were")[tense]
    if rng.random() < 0.25:  # boxes of things: the first step multiplies
        a, b, boxes = rng.randint(2, TABLE), rng.randint(2, TABLE), rng.choice(BOXES)
        each = rng.choice(EACH).format(a=a, b=b, boxes=boxes, box=one(boxes), **who)
        opening = f"{who['name']} {rng.choice((have, ('buys', 'bought')[tense]))} {each}" if person else f"There {are} {each}"
        steps.append((a, "*", b))
        now = a * b
    else:
        now = number(rng)
        verb = have if rng.random() < 0.8 else rng.choice(START)[tense]
        opening = f"{who['name']} {verb} {now} {who['things']}" if person else f"There {are} {now} {who['things']} in {rng.choice(PLACES)}"

    ending = rng.choice("/*") if rng.random() < 0.15 and len(steps) < count else ""
    clauses = []  # (text, whether its subject is the person of the story)
    while len(steps) < count - bool(ending):
        up = now < 3 or rng.random() < 0.5
        k = number(rng, LIMIT - now) if up else number(rng, now - 1)
        own = person and rng.random() < 0.85
        forms = (GAIN if up else LOSS + EAT * who["food"]) if own else (GIVEN if up else TAKEN) if person else (COMES if up else GOES)
        clauses.append((phrase(rng, forms, tense, who, k), own))
        steps.append((now, "+" if up else "-", k))
        now = value(*steps[-1])

    sentences = [opening]
    joined = person  # whether the next clause of the same subject may be joined by "and"
    for text, own in clauses:
        if own and joined and rng.random() < 0.4:
            sentences[-1] += rng.choice((" and ", " and ", " and then ", ", then ")) + text
            joined = False
        else:
            subject = (rng.choice((who["he"], who["he"], who["name"])) + " ") if own else ""
            lead = rng.choice(("", "", "Then ", "Later ", "Next, ", "After that, "))
            sentences.append(upper(lead + subject + text))
            joined = own
    sentences.append(question(rng, who, tense, now, ending, steps, person))
    return ". ".join(sentences), steps


def question(rng: Random, who: dict, tense: int, now: int, ending: str, steps: Steps, person: bool) -> str:
    """Ask for what there is now, or for one more step: shared among friends (/), sold for so much each (*)."""
    slots = dict(who, He="She", he="she") if not person else dict(who, He=upper(who["he"]))
    slots["does"] = ("does", "did")[tense]
    if ending == "/":
        k = rng.choice([k for k in range(2, TABLE + 1) if now % k == 0 and now // k <= TABLE] or [0])
        if k:
            steps.append((now, "/", k))
            shared = rng.random() < 0.5
            told = (rng.choice(SHARE) if shared else PACK)[tense].format(k=k, **slots)
            return told + rng.choice(ASK_SHARE if shared else ASK_PACK).format(**slots)
    if ending == "*" and now <= TABLE:
        k = rng.randint(2, 9)
        steps.append((now, "*", k))
        told = rng.choice(SELL)[tense].format(k=k, **slots)
        return (
            told + f"How {rng.choice(('many dollars', 'much money'))} {slots['does']} {slots['he']} {rng.choice(('get', 'make', 'earn'))}?"
        )
    left = ["left", "left now"] if steps and steps[-1][1] == "-" else IN_ALL
    end = rng.choice(["", "", " now", " now", " in the end", " at the end", *(" " + words for words in left)])
    if person:
        what = rng.choice(("does {name} have", "does {name} have", "does {he} have")).format(**who)
        return f"How many {who['things']} {what}{end}?"
    return f"How many {who['things']}{rng.choice(('', '', ' in total')) if not end else ''} are there{end}?"


def pair(rng: Random, count: int) -> tuple[str, Steps]:
    """Two people, one of whom has so many more, fewer or times as many. One step asks for the other's, two for both together."""
    who = cast(rng)
    name, friend, things = who["name"], who["friend"], who["things"]
    have = rng.choice(("has", "has", "had"))
    sign = rng.choice("+-*")
    if sign == "*":
        a, b = number(rng, TABLE), rng.randint(2, 6)
        relation = rng.choice((f"{b} times as many {things} as {name}", f"{b} times as many as {name}", f"{b} times as many"))
    else:
        a = number(rng) + 1
        b = number(rng, a - 1)
        word = "more" if sign == "+" else "fewer"
        relation = rng.choice((f"{b} {word} {things} than {name}", f"{b} {word} than {name}", f"{b} {word}"))
    steps = [(a, sign, b)]
    does = "does" if have == "has" else "did"
    ask = f"How many {things} {does} {friend} have?"
    if count == 2:
        steps.append((a, "+", value(*steps[0])))
        do = "do" if have == "has" else "did"
        ask = f"How many {things} {do} they have {rng.choice(TOGETHER)}?"
    return f"{name} {have} {a} {things}. {friend} {have} {relation}. {ask}", steps


def together(rng: Random, count: int) -> tuple[str, Steps]:
    """Several people put together what they have: count + 1 numbers to add."""
    who, numbers = cast(rng), [number(rng, LIMIT // (count + 1)) for _ in range(count + 1)]
    things = who["things"]
    names = rng.sample([n for n in HE + SHE if n != who["name"]], count)
    more = [f"{n} has {k}{rng.choice(('', ' ' + things))}" for n, k in zip(names, numbers[1:])]
    first = f"{who['name']} has {numbers[0]} {things}"
    told = f"{', '.join([first, *more[:-1]])} and {more[-1]}" if rng.random() < 0.6 else ". ".join([first, *more])
    steps: Steps = [(numbers[0], "+", numbers[1])]
    for k in numbers[2:]:
        steps.append((value(*steps[-1]), "+", k))
    return f"{told}. How many {things} do they have {rng.choice(TOGETHER)}?", steps


def price(rng: Random, count: int) -> tuple[str, Steps]:
    """A purchase: one step asks for the price, two for the change."""
    who, a, b = cast(rng), rng.randint(2, TABLE), rng.randint(2, TABLE)
    name, he = who["name"], who["he"]
    steps = [(a, "*", b)]
    told = rng.choice(COST)
    if count == 1:
        return f"{told}. {rng.choice(ASK_COST)}".format(a=a, b=b, buyer=name, **who), steps
    paid = a * b + number(rng, LIMIT - a * b)
    steps.append((paid, "-", a * b))
    if rng.random() < 0.5:
        told = told.format(a=a, b=b, buyer=name, **who)
        ask = rng.choice(("How much change does {} get?", "How many dollars does {} get back?")).format(he)
        return f"{told} and pays with {paid} dollars. {ask}", steps
    told = told.format(a=a, b=b, buyer=upper(he) if told.startswith("{buyer}") else name, **who)
    return f"{name} has {paid} dollars. {told}. How {rng.choice(('many dollars', 'much money'))} does {he} have left?", steps


def story(rng: Random, count: int) -> tuple[str, str]:
    """A story that takes exactly `count` steps."""
    while True:  # a chain that was to end in a division may find nothing to divide by, another grows too large: tell a new one
        kinds = [chain] * 6 + [together, pair, price] if count < 3 else [chain] * 8 + [together]
        kind = chain if count > 3 else rng.choice(kinds)
        prompt, steps = kind(rng, count)
        if len(steps) == count and max(value(*step) for step in steps) <= LIMIT:
            return prompt, solution(steps)


# ---- The other tasks


def calculation(rng: Random) -> tuple[int, str, int]:
    sign = rng.choice("++-*")
    if sign == "*":
        return rng.randint(2, TABLE), sign, rng.randint(2, TABLE)
    a = number(rng, LIMIT - 2)
    if sign == "+":
        return a, sign, number(rng, LIMIT - a)
    return a, sign, number(rng, a)


def add(rng: Random) -> tuple[str, str]:
    a, sign, b = calculation(rng)
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    asks = ["What is {0}?", "{0} = ?", "{0}", "Calculate {0}.", f"What is {a} {word} {b}?", "How much is {0}?"]
    if sign == "+":
        asks += [f"Add {a} and {b}.", f"What is the sum of {a} and {b}?"]
    return rng.choice(asks).format(f"{a} {sign} {b}"), solution([(a, sign, b)])


def drill(rng: Random) -> tuple[str, str]:
    """Up to 17 calculations that have nothing to do with each other: what a parallel decoder may do all at once."""
    steps = [calculation(rng) for _ in range(rng.randint(2, rng.choice((4, 8, 17))))]
    told = [f"{left} {sign} {right}" for left, sign, right in steps]
    ask = rng.choice(("Calculate {} and {}.", "Work out {} and {}.", "What are {} and {}?"))
    return ask.format(", ".join(told[:-1]), told[-1]), equations(steps)


def total(rng: Random) -> tuple[str, str]:
    """A running total of up to 12 numbers: the longest chain of steps there is."""
    count = rng.randint(3, rng.choice((5, 8, 12)))
    numbers = [number(rng, LIMIT // count) for _ in range(count)]
    steps: Steps = [(numbers[0], "+", numbers[1])]
    for k in numbers[2:]:
        steps.append((value(*steps[-1]), "+", k))
    last = f"{listed(numbers[:-1])} and {numbers[-1]}"
    asks = (f"Add up {last}.", f"Add {last}.", f"What is the sum of {last}?", f"Sum: {listed(numbers)}", f"Find the total of {last}.")
    return rng.choice(asks), solution(steps)


def compare(rng: Random) -> tuple[str, str]:
    a = number(rng)
    b = number(rng) if rng.random() < 0.7 else max(2, a + rng.randint(-9, 9))
    if a == b:
        b += 1
    larger = rng.random() < 0.5
    word = rng.choice(("larger", "bigger", "greater") if larger else ("smaller", "less"))
    ask = rng.choice((f"Which is {word}, {a} or {b}?", f"Which number is {word}, {a} or {b}?", f"Which is {word}: {a} or {b}?"))
    return ask, f"{a} {'<' if a < b else '>'} {b}. The answer is {max(a, b) if larger else min(a, b)}."


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def sort(rng: Random) -> tuple[str, str]:
    numbers = rng.sample(range(100), rng.randint(3, 6))
    asks = (
        "Sort these numbers: {}.",
        "Sort the numbers {}.",
        "Sort: {}",
        "Put these numbers in order: {}.",
        "Sort {} from small to large.",
    )
    return rng.choice(asks).format(listed(numbers)), f"The answer is {listed(sorted(numbers))}."


def reverse(rng: Random) -> tuple[str, str]:
    numbers = [rng.randrange(100) for _ in range(rng.randint(3, 8))]
    asks = (
        "Reverse this list: {}.",
        "Reverse the list {}.",
        "Reverse: {}",
        "Reverse these numbers: {}.",
        "Write these numbers backwards: {}.",
    )
    return rng.choice(asks).format(listed(numbers)), f"The answer is {listed(numbers[::-1])}."


# ---- Checkers


def check_steps(problem: Problem, text: str) -> bool:
    """The taught steps and the taught form, but the numbers that a + or a * joins may change places."""
    return in_order(text) == in_order(problem.answer)


def in_order(text: str) -> str:
    """7 + 12 -> 12 + 7: by text, not by value, so that 007 stays what it is."""
    return re.sub(r"([0-9]+) ([+*]) ([0-9]+)", lambda m: "{0} {2} {1}".format(*sorted((m[1], m[3])), m[2]), text)


def check_exactly(problem: Problem, text: str) -> bool:
    return text == problem.answer


TASKS = {
    "one-step": Task(partial(story, count=1), check_steps, 12, 5),
    "two-step": Task(partial(story, count=2), check_steps, 18, 8),
    "three-step": Task(partial(story, count=3), check_steps, 15, 11),
    "four-step": Task(partial(story, count=4), check_steps, 13, 15),
    "add": Task(add, check_steps, 6, 3),
    "drill": Task(drill, check_steps, 10, 16),
    "total": Task(total, check_steps, 9, 16),
    "compare": Task(compare, check_exactly, 5, 12),
    "sort": Task(sort, check_exactly, 7, 11),
    "reverse": Task(reverse, check_exactly, 5, 3),
}


def check(problem: Problem, text: str) -> bool:
    """Is `text`, the answer without its EOS, a right answer to `problem`, step by step and in the taught form?"""
    return TASKS[problem.task].check(problem, text)


# ---- Data


def is_held_out(answer: str) -> bool:
    """Decided by sha256 of the answer, not by Python's hash(), which is salted anew in every process."""
    return int.from_bytes(hashlib.sha256(answer.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def problems(seed: str | int, task: str | None = None, held_out: bool = False, polish: bool = False) -> Iterator[Problem]:
    """Yield problems without end, from the held-out solutions or from all the others: of one task, or of all in their shares.

    polish: in the shares of the polish
    """
    rng = Random(f"{seed}")  # a string is hashed by sha512: the same stream on every machine
    names, shares = list(TASKS), [t.polish if polish else t.share for t in TASKS.values()]
    while True:
        name = task or rng.choices(names, shares)[0]
        prompt, answer = TASKS[name].make(rng)
        if is_held_out(answer) == held_out:
            yield Problem(name, prompt, answer)
