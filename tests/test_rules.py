"""docs/rules.md: what rules write on one row is what its table says."""

import re
from pathlib import Path

import pytest
import torch

from kernels import Scores
from lab.compare import contender
from shared import CONFIDENCE, ONE
from strategies import STRATEGIES, Window, build

PAGE = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
LINES = re.findall(r"^\| `([^`]+)` \| ([\d, ]+) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("label, writes", LINES)
def test_the_table_of_the_worked_row(label, writes):
    """Would catch a rule that has changed, and a table that says what none of them does."""
    if label.partition(":")[0] not in STRATEGIES:
        pytest.skip("its file is not there")
    of, c = contender(label), torch.tensor([CONFIDENCE])
    entropy = -(c * c.log() + (1 - c) * (1 - c).log())
    strategy, scores = build(of.strategy, **of.settings), Scores(torch.zeros(1, 8, dtype=torch.int64), 1 / c - 1, lambda name: entropy)
    doubt = scores.doubt if strategy.order is None else strategy.order(scores, None)
    masked = torch.ones(1, 8, dtype=torch.bool)
    found = strategy.rule(scores.ordered(doubt), masked, Window(8, 16, 0, 8, 0, 4, **ONE))
    assert ", ".join(map(str, found[0].nonzero()[:, 0].tolist())) == writes


def test_the_row_is_that_of_the_idea():
    """Would catch a page about another row, and a pattern that finds no line."""
    assert "  ".join(f"{c:.2f}" for c in CONFIDENCE) in PAGE and len(LINES) >= 11
