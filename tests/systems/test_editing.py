"""Token editing: what may be replaced, and until when."""

import pytest
import torch
from hypothesis import given

from conftest import MASK
from kernels import Scores
from shared import answers, changed, run, same, seeds, views
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.llada import full, serial


def test_it_replaces_only_what_the_model_has_left():
    """Would catch an edit of a full block or of a finished row, and edits below the threshold. Candidates are cells 0 and 1."""
    scores = Scores(torch.full((2, 4), 7), 1 / torch.tensor([[0.9, 0.5, 0.95, 0.6]] * 2) - 1, torch.zeros(2, 4), torch.zeros(2, 4))
    candidates = torch.tensor([[True, True, False, False], [False] * 4])
    write, token = build("editing", threshold=0.8, edit_threshold=0.9).rule(scores, candidates, None)
    assert write.tolist() == [[True, False, True, False], [False] * 4] and (token == 7).all()


@given(seeds)
def test_with_an_unreachable_threshold_it_is_the_plain_rule(seed):
    """Would catch an edit that no threshold stops."""
    assert same(run(seed, "editing", threshold=0.6, edit_threshold=2.0), run(seed, "fast-dllm", threshold=0.6))


def test_it_does_edit():
    """Negative control for the test above."""
    plain = {"cache": "none", "threshold": 0.5}
    assert changed("fast-dllm", plain, "editing", plain | {"edit_threshold": 0.5}) >= 1


def test_what_cannot_be_combined_is_refused():
    """Would catch a combination that runs and is wrong."""
    rule = build("editing", threshold=0.6, edit_threshold=0.4).rule
    with pytest.raises(ValueError, match="needs one block at a time"):
        Strategy(rule, full, pipeline(0.1, 0.95))
    for name, view in views("dkv", "dllm-cache", "sparse").items():
        if name in ("dkv", "dllm-cache"):
            with pytest.raises(ValueError, match="contradicts a cache"):
                Strategy(rule, view, serial)
        else:  # which changes nothing outside the block
            assert MASK not in answers(run(3, Strategy(rule, view, serial)))[0]
