"""LLaDA's quota, its orders, and the schedule that the others share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model, random_prompt
from dllm import decode
from kernels import Scores
from shared import LENGTHS, ONE, changed, committed
from strategies import Window
from strategies.llada import quota


def test_the_quota_on_the_worked_example():
    """Would catch a change of its meaning; docs/idea.md works it out by hand."""
    assert committed(quota) == [0, 3]


@given(st.integers(1, 12), st.integers(1, 12))
def test_quotas_share_the_masks_out_evenly_the_larger_first(masks, forwards):
    """Would catch a quota other than LLaDA's: m // S each, and one more in the first m % S forwards."""
    doubt = torch.rand(1, 12)
    left, spent = torch.arange(12)[None] < masks, []
    for index in range(forwards):
        window = Window(0, 12, index, 0, 0, forwards - index, **ONE)
        commit = quota(Scores(doubt, doubt), left, window) & left
        spent.append(int(commit.sum()))
        left = left & ~commit
    assert spent == [masks // forwards + (i < masks % forwards) for i in range(forwards)]


@pytest.mark.parametrize("order", ["margin", "entropy"])
def test_orders_rank_by_what_they_name(order):
    """Would catch an order that is turned round: the first commit is the widest margin, or the least entropy."""
    for seed in range(5):
        step = next(decode(random_model(seed), random_prompt(seed, 5), "llada", remasking=order, **LENGTHS))
        best = step.scores.margin.argmax() if order == "margin" else step.scores.entropy.argmin()
        assert step.commit[0].nonzero()[:, 0].tolist() == [int(best)]


def test_the_orders_differ():
    """Negative control: an order that is not asked for would pass where all agree."""
    assert changed("llada", {"remasking": "margin"}, "llada", {"remasking": "entropy"}) >= 1
    assert changed("llada", {}, "llada", {"remasking": "entropy"}) >= 1
