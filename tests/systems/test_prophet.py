"""Prophet: when all the rest is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
from dllm import decode
from shared import changed, refused, run, same, seeds

WHOLE = {"gen_length": 24, "block_length": 24, "inner": 8}
NEVER = {"early": 1e5, "mid": 1e5, "late": 1e5}


@given(seeds, st.sampled_from([24, 6, 3]))
def test_if_it_never_knows_it_is_llada_in_inner_blocks(seed, steps):
    """Would catch a quota of the whole answer, and a look that is not asked for."""
    plain = run(seed, "llada", steps=steps)
    assert same(run(seed, "prophet", **WHOLE, steps=steps), plain)
    assert same(run(seed, "prophet", **WHOLE | NEVER, answer_start=3, steps=steps), plain)
    assert run(seed, "prophet", **WHOLE, early=0.0, answer_start=3, steps=24).nfe == 1


@given(seeds, st.integers(0, 23), st.integers(1, 6))
def test_it_looks_at_the_gaps_of_the_answer(seed, start, length):
    """Would catch a minimum for a mean, other cells, thirds that begin a step late, and a last logit for the second."""
    gaps, steps = {"early": 6.0, "mid": 4.0, "late": 2.0}, 12
    own = WHOLE | gaps | {"answer_start": start, "answer_length": length, "steps": steps}
    for i, step in enumerate(decode(random_model(seed), random_prompt(seed, 5), "prophet", **own), 1):
        cells = step.logits[0, start : start + length].sort(-1).values
        gap = (cells[:, -1] - cells[:, -2]).double().mean()
        knows = gap >= (6.0 if i / steps < 0.33 else 4.0 if i / steps < 0.67 else 2.0)
        assert knows == (not (step.x == MASK).any()) or i == steps


def test_it_differs():
    """Negative control: ending early changes answers."""
    own = WHOLE | {"early": 4.0, "mid": 3.0, "late": 2.0, "answer_start": 3}
    assert changed("prophet", own, "prophet", own | NEVER) >= 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"block_length": 8}, "block_length is 8, expected gen_length"),
        ({"block_length": 24, "inner": 5}, "inner is 5, expected a divisor of gen_length 24"),
        ({"block_length": 24, "inner": 8, "steps": 4}, "steps is 4, expected a multiple of 3"),
        ({"answer_start": -1}, "answer_start is -1"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    """Would catch blocks behind which it could not write, and a division that leaves cells."""
    refused(random_model(0), "prophet", message, **settings)
