"""WINO: its shadows, and what is taken back."""

import pytest
import torch
from hypothesis import given

from conftest import MASK, random_model, random_prompt
from dllm import decode, prepare
from model import Pass
from shared import LENGTHS, changed, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.fast_dllm import threshold_rule
from strategies.llada import full, serial
from strategies.wino import by_shadows, shadowed

BOLD = {"threshold": 0.4, "threshold_back": 0.6}


@given(seeds)
def test_a_shadow_is_a_mask_in_its_tokens_place(seed):
    """Would catch a shadow that sees its own token, and a canvas that sees shadows: with one layer the others do not matter, so what a
    shadow says is what a mask in that place of the canvas would say, and all else is as without shadows."""
    model, prompt = random_model(seed, n_layers=1), random_prompt(seed, 5)
    canvas = prepare(model, prompt, "wino", LENGTHS | BOLD)
    canvas.x[0, 5:9] = canvas.given[0, 5:9].long() + 3  # four written cells
    canvas.opened += 1
    window = canvas.window(0, 1, 1, 0, torch.ones(1, 1, dtype=torch.bool))
    plain = model(canvas.x)[0, 5:13]
    both = canvas.forward(window, shadowed(canvas, window))[0]
    torch.testing.assert_close(both[:8], plain)
    for cell in range(8):
        x, mask = canvas.x.clone(), torch.ones(29, 29, dtype=torch.bool)
        x[0, 5 + cell] = MASK
        x = torch.cat((x, torch.full((1, 8), MASK)), 1)  # its own place, and all shadows behind
        query = torch.cat((torch.arange(29), torch.arange(5, 13)))
        mask = torch.ones(37, 37, dtype=torch.bool)
        mask[5 + cell, 5 + cell] = False
        there = model(x, Pass(query, mask=mask))[0, 5 + cell]
        torch.testing.assert_close(both[8 + cell], there, atol=1e-4, rtol=1e-4)
    chosen = by_shadows(canvas, window, shadowed(canvas, window))[0]
    torch.testing.assert_close(chosen, torch.cat((both[8:12], both[4:8])))


@given(seeds)
def test_with_nothing_to_take_back_it_is_a_strict_threshold(seed):
    """Would catch a cap that holds for blocks of few masks, and shadows that change what is written."""
    strict = Strategy(threshold_rule(0.4, strict=True), full, serial)
    mine = run(seed, "wino", threshold=0.4, threshold_back=0.0, block_length=4)
    assert same(mine, run(seed, strict, block_length=4))
    assert same(run(seed, "wino", threshold=1.0, block_length=8), run(seed, "llada"))


@given(seeds)
def test_it_takes_back_fewer_than_were_committed_before(seed):
    """Would catch a bound by this forward's commits (d2Cache's), a cap that is not there, and tokens taken back beside a single commit."""
    last, masks = 30, 24
    for step in decode(random_model(seed), random_prompt(seed, 5), "wino", gen_length=24, **BOLD | {"threshold": 0.2}):
        back = int((step.commit & (step.token == MASK)).sum())
        made = int((step.commit & step.candidates).sum())
        assert made <= min(max(int(masks * 0.7), 5), 20) and back <= last - 1 and (back == 0 or made > 1)
        last, masks = made, masks - made + back
    assert masks == 0


def test_it_does_take_back():
    """Negative control for the tests above."""
    assert changed("wino", BOLD, "wino", BOLD | {"threshold_back": 0.0}) >= 2


def test_what_cannot_be_combined_is_refused():
    """Would catch blocks that share what one remembers."""
    with pytest.raises(ValueError, match="a rule that remembers a block's tokens needs one block at a time"):
        Strategy(build("wino").rule, full, pipeline(0.1, 0.95))
