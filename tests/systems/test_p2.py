"""P2: how many cells stay, and which."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
from dllm import decode
from shared import LENGTHS, changed, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.llada import full


@given(seeds, st.sampled_from([3, 6, 12, 24]))
def test_what_is_written_never_loses_at_eta_zero(seed, steps):
    """Would catch a written cell that is taken back though nothing is surer: eta = 0 is LLaDA, where the shares are the same."""
    mine = run(seed, "p2", eta=0.0, steps=steps, block_length=8)
    assert same(mine, run(seed, "llada", steps=steps)) or 8 % (steps // 3)  # whose remainder comes first


@given(seeds, st.sampled_from([2, 5, 8]), st.sampled_from([0.5, 1.0, 2.0]))
def test_after_each_forward_as_many_stand_as_planned(seed, steps, eta):
    """Would catch a plan that counts from another forward, and what is kept by another order: in loops."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    for i, step in enumerate(decode(model, prompt, "p2", gen_length=8, steps=steps, eta=eta), 1):
        masked = int(torch.tensor(8.0) * (1 - i * (1 / steps)))
        assert int((step.x[0, 5:] == MASK).sum()) == masked
        surprise = step.scores.doubt.log1p()[0] * torch.where(step.candidates[0], 1.0, eta)
        left = step.x[0, 5:] == MASK
        assert not left.any() or left.all() or surprise[left].min() >= surprise[~left].max()
    assert i == steps


def test_it_takes_back_and_eta_matters():
    """Negative control for the tests above."""
    assert changed("p2", {"steps": 12, "eta": 2.0, "block_length": 24}, "p2", {"steps": 12, "eta": 0.0, "block_length": 24}) >= 2


def test_what_a_template_gives_is_not_counted():
    """Would catch a plan over all cells: half of eight are given, so after the first of four forwards one is written."""
    template = [1, MASK, 2, MASK, 3, MASK, 4, MASK]
    first = next(decode(random_model(0), [5, 6], "p2", template=template, steps=4))
    assert int((first.x == MASK).sum()) == 3


def test_what_cannot_be_combined_is_refused():
    """Would catch a quota that several blocks share."""
    with pytest.raises(ValueError, match="a quota of tokens per step needs one block at a time"):
        Strategy(build("p2").rule, full, pipeline(0.1, 0.95))
    assert LENGTHS
