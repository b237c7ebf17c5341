"""KLASS: what it looks at, for how long, and what it does else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MASK, random_model, random_prompt
from dllm import decode
from shared import again, answers, changed, run, same, seeds
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.fast_dllm import threshold_rule
from strategies.klass import Watch
from strategies.llada import full, serial

LOOSE = {"threshold": 0.4, "kl_threshold": 0.5}


@given(seeds, st.sampled_from([0.3, 0.6]))
def test_without_a_limit_it_is_a_strict_threshold(seed, threshold):
    """Would catch a first forward that counts as a change without bound, and a history that is one too long."""
    strict = Strategy(threshold_rule(threshold, strict=True), full, serial)
    assert same(run(seed, "klass", threshold=threshold, kl_threshold=1e5, history=1), run(seed, strict))


@given(seeds)
def test_where_nothing_is_ready_it_is_llada(seed):
    """Would catch a limit that is reached, and a quota other than LLaDA's."""
    for steps in (24, 9):
        plain = run(seed, "llada", steps=steps)
        assert same(run(seed, "klass", kl_threshold=0.0, steps=steps), plain)
        assert same(run(seed, "klass", threshold=1.0, kl_threshold=1e5, steps=steps), plain)


@given(seeds, st.sampled_from([1, 2, 3]))
def test_it_is_the_authors_loop(seed, history):
    """Would catch a history of a block's own, one of candidates alone, and one that runs behind: the loop, written out."""
    model, prompt, mine = random_model(seed), random_prompt(seed, 5), []
    x, last, seen, P = torch.tensor([prompt + [MASK] * 24]), torch.zeros(29, 40, dtype=torch.float64), [], 5
    for block in range(3):
        span, step = slice(P + 8 * block, P + 8 * block + 8), 0
        while (x[0, span] == MASK).any():
            logits = model(x)[0].double()
            logits[:, MASK] = -torch.inf
            p = logits.softmax(-1)
            seen.append((p * ((p + 1e-12).log() - (last + 1e-12).log())).sum(-1))
            last = p
            sure, token = p[span].max(-1)
            masked = x[0, span] == MASK
            calm = torch.stack(seen[-history:]).lt(0.5).all(0)[span] & (step >= history - 1)
            ready = masked & calm & (sure > 0.4)
            if not ready.any():
                ready = torch.arange(8) == sure.masked_fill(~masked, -1).argmax()
            x[0, span] = torch.where(ready, token, x[0, span])
            step, mine = step + 1, [*mine, x.clone()]
    steps = decode(model, prompt, "klass", gen_length=24, block_length=8, history=history, **LOOSE)
    assert all(step.x.equal(x) for step, x in zip(steps, mine, strict=True))


def test_a_quota_is_that_of_the_block_when_it_began():
    """Would catch a division by the forwards that are left: in three forwards for eight cells there may be none, and cells still."""
    for seed in range(6):
        for step in decode(random_model(seed), [1, 2, 3], "klass", gen_length=24, block_length=8, steps=9, **LOOSE):
            pass
        assert not (step.x == MASK).any()


def test_its_memory_is_that_of_one_decode():
    """Would catch distributions that leak from one decode into the next when a Strategy is used twice."""
    mine = build("klass", **LOOSE)
    assert answers(again(3, mine)) == answers(again(3, mine)) == answers(run(3, "klass", **LOOSE))


def test_it_differs():
    """Negative controls: the limit, the history and the threshold matter."""
    for other in ({"kl_threshold": 1e5}, {"history": 1}, {"threshold": 0.9}):
        assert changed("klass", LOOSE, "klass", LOOSE | other) >= 1


def test_what_cannot_be_combined_is_refused():
    """Would catch a quota that several blocks share."""
    with pytest.raises(ValueError, match="one block at a time"):
        Strategy(build("klass").rule, full, pipeline(0.1, 0.95), forward=Watch(0.1))
