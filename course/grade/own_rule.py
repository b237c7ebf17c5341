"""Grades 14_own_rule.py."""

import io
from contextlib import redirect_stderr
from types import SimpleNamespace

import torch

from course.checks import cells, drawn
from course.grading import Part, Wrong
from course.rank import EXAM, contends, measure, saved
from kernels import Scores, score
from strategies import Window
from strategies.fast_dllm import threshold_rule

PARTS = {"rule": Part(threshold_rule(0.9), cells)}
N, L = 6, 16
LEAST = 90  # right answers of a hundred


def asked(age: int) -> tuple[Scores, torch.Tensor, Window]:
    """Random scores of N lines, from barely sure to quite."""
    generator = torch.Generator().manual_seed(age)
    logits = torch.randn(N, L, 20, generator=generator)
    logits[..., 0] += 12 * torch.rand(N, L, generator=generator)
    candidates = torch.rand(N, L, generator=generator) < 0.7
    must, live = candidates.any(-1, keepdim=True), torch.arange(N)
    window = Window(8, 8 + L, age, 8, 32, 4, must, live, torch.full((N,), age))
    return score(logits), candidates, window


def is_a_rule(mine: SimpleNamespace) -> None:
    for age in range(3):
        scores, candidates, window = asked(age)
        together = mine.rule(scores, candidates, window)
        for says, lines in (("asked again", [slice(0, N)]), ("alone", range(N))):
            for n in lines:
                n = slice(n, n + 1) if isinstance(n, int) else n
                few = scores.each(lambda t: t[n].clone())
                own = {name: getattr(window, name)[n] for name in ("must", "live", "forwards")}
                given = few, candidates[n].clone(), Window(**vars(window) | own)
                pairs = zip(mine.rule(*given).tolist(), together[n].tolist())
                for line, (yours, before) in enumerate(pairs, n.start):
                    if yours != before:
                        shown = drawn(yours, before, confidence=rounded(scores, line))
                        told = f"line {line} has another answer {says} than it had among {N} lines"
                        raise Wrong(f"{told} (expected: what it was)\n\n{shown}")


def rounded(scores: Scores, line: int) -> list[float]:
    return [round(c, 3) for c in scores.confidence[line].tolist()]


def is_no_threshold(mine: SimpleNamespace) -> None:
    """No number lies between the confidences of what it writes and of what it leaves."""
    written, left = [], []
    for age in range(3):
        scores, candidates, window = asked(age)
        chosen = mine.rule(scores, candidates, window)
        written.append(scores.confidence[chosen])
        left.append(scores.confidence[candidates & ~chosen])
    written, left = torch.cat(written), torch.cat(left)
    if not len(written) or not len(left) or written.min() > left.max():
        least = f"{written.min():.3f}" if len(written) else "1"
        most = f"{left.max():.3f}" if len(left) else "0"
        told = f"all that it writes has a confidence of at least {least}, all that it leaves"
        raise Wrong(f"it is a plain threshold: {told} at most {most}")


def exam(mine: SimpleNamespace) -> dict:
    """Other stories than those of the leaderboard, beside plain thresholds."""
    plain, pair = saved()["exam"], "right in {right:.0f} of 100, in {forwards:.2f} forwards".format
    with redirect_stderr(io.StringIO()):  # a bar of progress
        own = measure([contends("yours", mine.rule)], seed=EXAM)["yours"]
    if own["right"] < LEAST:
        raise Wrong(f"yours is {pair(**own)}; expected at least {LEAST}")
    for label, other in plain.items():
        if other["right"] >= own["right"] and other["forwards"] <= own["forwards"]:
            raise Wrong(f"yours is {pair(**own)}; {label} is {pair(**other)}")
    nine = plain["fast-dllm:cache=dual:threshold=0.9:eos=stop"]
    return {name: [own[name], nine[name]] for name in ("right", "forwards", "rows")}


CHECKS = {"a rule": is_a_rule, "no plain threshold": is_no_threshold, "exam": exam}
