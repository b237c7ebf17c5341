"""Grades 13_eb_sampler.py. The project has no such strategy: `bounded` here is its own."""

import functools
import json
import runpy

import torch
from torch import Tensor

from course.checks import (
    ROOT,
    Case,
    by_hand,
    cells,
    first_difference,
    projects,
    split,
    stories,
)  # fmt: skip
from course.grading import Part, Wrong
from dllm import generate
from kernels import Scores
from strategies import Strategy, Window, rank
from strategies.fast_dllm import cached
from strategies.llada import ORDERS, serial


def bounded(scores: Scores, candidates: Tensor, window: Window, gamma: float) -> Tensor:
    """Cell by cell: those before it in the order, summed."""
    place = rank(scores.entropy, candidates)  # [N, L]
    before = (place[:, None] < place[..., None]) & candidates[:, None]  # [N, L, L]
    return (before * scores.entropy[:, None]).sum(-1) <= gamma


PARTS = {"bounded": Part(bounded, cells)}
IMPORTS = {"strategies": {"Window", "rank"}}
EIGHT = [[0.2, 0.7, 1.4, 0.3, 1.1, 2.2, 0.9, 1.6]]
TABLE = [
    Case("0.2 + 0.3 = 0.5 fits, so three are written; + 0.7 = 1.2 does not", ["########"],
         settings={"gamma": 1.0}, entropy=EIGHT, expected=["xx.x...."]),
]  # fmt: skip
gamma = lambda value: {"gamma": value}
# none but the fifth lies where rounding decides, and that is exact in binary
TRAPS = [
    Case("gamma 0 writes one token", ["########"], settings=gamma(0.0), entropy=EIGHT),
    Case("the least uncertain is always written", ["--#-----"], settings=gamma(0.0), entropy=EIGHT),
    Case("a large gamma writes all masks", ["#-######"], settings=gamma(99.0), entropy=EIGHT),
    Case("what is written already adds nothing", ["--#-####"], settings=gamma(2.1), entropy=EIGHT),
    Case("the bound may be as large as gamma", ["####----"], settings=gamma(0.75),
         entropy=[[0.25, 0.5, 0.75, 2.0, 0, 0, 0, 0]]),
    Case("each line has a bound of its own", ["########", "########"], settings=gamma(1.0),
         entropy=[EIGHT[0], EIGHT[0][::-1]]),
    Case("a line without masks writes nothing, and is no trouble", ["--------", "####----"],
         settings=gamma(0.6), entropy=EIGHT * 2),
    Case("certain cells cost nothing", ["########"], settings=gamma(0.0),
         entropy=[[0.0, 0.0, 0.4, 0.0, 0.9, 1.0, 0.4, 2.0]]),
    Case("of equal entropies the left one comes first", ["########"], settings=gamma(1.0),
         entropy=[[0.5] * 8]),
    Case("by entropy, not by confidence", ["####----"], settings=gamma(0.9),
         doubt=[[0.1, 0.9, 0.5, 0.3, 1, 1, 1, 1]], entropy=[[1.4, 0.2, 0.9, 0.6, 0, 0, 0, 0]]),
]  # fmt: skip


def strategy(parts, gamma=0.1, cache="prefix") -> Strategy:
    rule = lambda *asked: parts.bounded(*asked, gamma)
    return Strategy(rule, cached(cache), serial, order=ORDERS["entropy"])


@functools.cache
def seeded(**named):
    """The random checkpoint of a golden."""
    return runpy.run_path(str(ROOT / "tests/goldens/related/checkpoints.py"))["seeded"](**named)


def goldens(mine) -> None:
    """Decodes by others' implementations, which have no cache."""
    file = ROOT / "course" / "goldens" / "eb.jsonl"
    for case in map(json.loads, file.read_text().splitlines()):
        own, common = split(case["settings"])
        both = [strategy(parts, own["gamma"], "none") for parts in (mine, projects(PARTS))]
        with torch.random.fork_rng(devices=[]):  # it draws on the CPU
            model = seeded(**case["model"])
        result = generate(model, case["prompt"], both[0], **common)
        answer = result.tokens[0, len(case["prompt"]) :].tolist()
        if answer != case["tokens"] or result.nfe != case["nfe"]:
            told = f"a decode with gamma {own['gamma']} took {result.nfe} forwards, theirs "
            apart = first_difference(model, case["prompt"], *both, **common)
            raise Wrong(f"{told}{case['nfe']} ({case['source']}).\n{apart}")


SEE = {"gamma": 0.1}
CHECKS = {
    "worked table": by_hand("bounded", PARTS["bounded"], TABLE),
    "properties": by_hand("bounded", PARTS["bounded"], TRAPS),
    "goldens": goldens,
    "tiny model": stories(PARTS, strategy),
}
