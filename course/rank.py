"""A leaderboard for rules of one's own: `python -m course rank FILE.py:rule`.

The rule decodes the same hundred held-out stories as the project's strategies did when
leaderboard.json was made, by `python -m course rank --measure`; the file names the commit. Counts
and answers are the same on every machine, or nearly: rounding differs. It also holds the figures of
plain thresholds on another hundred, on which exercise 14 is graded.

A line is on the Pareto front if no other is at least as good in right answers, forwards and rows,
and better in one. Left out on purpose: times, which are a machine's own.
"""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from course.checks import cells
from course.grading import DEFAULT, Endless, Part, load, refuse, said
from dllm import generate
from lab.compare import decode_all
from lab.contenders import Contender, contender
from lab.data import Tasks
from lab.report import replace_file, table
from strategies import Strategy
from strategies.fast_dllm import cached
from strategies.llada import serial

ROOT = Path(__file__).parent.parent
BOARD = Path(__file__).with_name("leaderboard.json")
ASKED = {"seed": 1234, "limit": 25, "batch_size": 1, "gen_length": 128}  # limit: of each length
EXAM = 4321  # the seed of the stories of exercise 14
THRESHOLDS = [f"fast-dllm:cache=dual:threshold={t}" for t in (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)]
CONTENDERS = (
    "llada", "llada:steps=64", *THRESHOLDS,
    "fast-dllm:cache=prefix", "fast-dllm:cache=dual:factor=1", "localleap:cache=dual",
    "streaming:cache=dual", "d2f", "hierarchy:cache=dual", "credit:cache=dual",
    "saber:cache=dual", "learn2pd:cache=dual", "dllm-var",
)  # fmt: skip
COUNTED = ("right", "low", "high", "forwards", "rows")
WIDTH = {
    "right": "{:.0f}",
    "low": "{:.0%}",
    "high": "{:.0%}",
    "forwards": "{:.2f}",
    "rows": "{:.0f}",
}


def measure(contenders: list[Contender], **asked) -> dict[str, dict[str, float]]:
    """Right answers, of a hundred, with their 95 % interval; forwards and rows of a story."""
    own = {"model": None, "adapter": None, "device": "cpu", "dtype": "float32", "eos": "own"}
    args = Namespace(task="stories", **own, **ASKED | asked)
    tally = decode_all(args, contenders, Tasks(args))
    for label, why in tally.without.items():
        raise ValueError(f"{label}: {why}")
    found = tally.figures([c.label for c in contenders], "")["all"]
    found = {label: f | {"right": 100 * f["accuracy"]} for label, f in found.items()}
    return {label: {name: round(f[name], 4) for name in COUNTED} for label, f in found.items()}


def contends(label: str, rule, cache: str = "dual") -> Contender:
    """A rule as a contender, with a cache of Fast-dLLM's."""
    strategy = Strategy(lambda *asked: rule(*asked), cached(cache), serial, eos="stop")
    by_rule = lambda model, prompts, _, **common: generate(model, prompts, strategy, **common)
    return Contender("fast-dllm", {}, label, label, by_rule)


def own_rule(text: str) -> Contender:
    """FILE.py:RULE as a contender, within the limits of an exercise."""
    name, _, rule = text.rpartition(":")
    file = Path(name)
    if not name.endswith(".py") or not file.is_file():
        raise ValueError(f"{text}: expected FILE.py:RULE, of a file that is there")
    part = {rule: Part(None, cells)}
    refuse(file, DEFAULT, part)
    return contends(text, getattr(load(file, part), rule))


def dominates(a: dict, b: dict) -> bool:
    """Is a as good as b in all that counts, and better in something?"""
    pairs = [(a["right"], b["right"]), *((b[name], a[name]) for name in ("forwards", "rows"))]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def front(board: dict[str, dict]) -> set[str]:
    return {
        label
        for label, own in board.items()
        if not any(dominates(other, own) for other in board.values())
    }


def leaderboard(board: dict[str, dict], mine: tuple[str, ...] = ()) -> str:
    """The table, most right answers first; mine: what is marked."""
    best, rows = front(board), []
    order = sorted(board, key=lambda label: (-board[label]["right"], board[label]["forwards"]))
    for label in order:
        row = {"": f"{'> ' * (label in mine)}{label}"}
        row |= {name: WIDTH[name].format(board[label][name]) for name in COUNTED}
        rows.append(row | {"front": "*" if label in best else ""})
    return table(rows)


def saved() -> dict:
    return json.loads(BOARD.read_text(encoding="utf-8"))


def save() -> None:
    """Measure the project's strategies again and keep the figures."""
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    made_at = subprocess.run(commit, capture_output=True, text=True).stdout.strip()
    board, exam = (
        measure([contender(f"{text}:eos=stop") for text in texts], seed=seed)
        for texts, seed in ((CONTENDERS, ASKED["seed"]), (THRESHOLDS, EXAM))
    )
    kept = {"commit": made_at, "asked": ASKED, "board": board, "exam": exam}
    replace_file(BOARD, json.dumps(kept, indent=1) + "\n")


def told(board: dict[str, dict], label: str, rest: set[str]) -> str:
    """Whether it is on the front, or what dominates it."""
    better = [other for other in board if dominates(board[other], board[label])]
    if not better:
        return f"{label} is on the Pareto front." + " New there." * (label not in rest)
    return f"{label} is not on the Pareto front: {better[0]} is as good in all, and better."


def main(arguments: list[str]) -> int:
    if arguments == ["--measure"]:
        save()
        arguments = []
    try:
        kept = saved()
        rules = [own_rule(text) for text in arguments]
        board = kept["board"] | (measure(rules) if rules else {})
    except (ValueError, OSError) as error:
        print(f"course rank: {error}", file=sys.stderr)
        return 2
    except (Exception, Endless, SystemExit) as error:
        file = Path(arguments[0].rpartition(":")[0])
        print(f"course rank: {said(error, file)}", file=sys.stderr)
        return 1
    print(f"100 held-out stories, 25 of each length; the project's figures are of {kept['commit']}")
    print(leaderboard(board, tuple(arguments)))
    print(*(told(board, label, set(kept["board"])) for label in arguments), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
