"""Residual context: a mask gives way to what was expected in its place, the more the less is known."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import MASK, random_model, random_prompt
from dllm import prepare, stream
from lab.oracle import Oracle
from shared import LENGTHS, answers, changed, refused, run, same, seeds
from strategies import Strategy
from strategies.blocks import blocks_of, in_blocks
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import serial
from strategies.rcd import Residual, residual

contexts, shifts = st.sampled_from(["block", "token", "causal"]), st.sampled_from([0, 1])


class Nothing(Residual):
    def expected(self, s, window, logits):
        return torch.zeros(())


def table(seed: int, V: int = 9, C: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(V, C, generator=rng), torch.randn(3, V, generator=rng)


@given(seeds)
def test_what_is_sure_adds_nothing_and_what_is_unknown_the_mean_of_all(seed):
    """Would catch a share that falls where the entropy grows, one that is not of log V, and a mask that stays."""
    E, logits = table(seed)
    torch.testing.assert_close(residual(logits * 1e4, E, E[8]), torch.zeros(3, 4))
    torch.testing.assert_close(residual(logits * 0, E, E[8]), (E.mean(0) - E[8]).expand(3, 4))
    assert not torch.allclose(residual(logits, E, E[8]), (E.mean(0) - E[8]).expand(3, 4), atol=1e-2)


@given(seeds)
def test_its_weights_sum_to_zero(seed):
    """Would catch a mask that gives way to less, or more, than what takes its place: embeddings that all move move nothing."""
    E, logits = table(seed)
    logits[:, 8] = -torch.inf  # no NaN of the token that is never written
    torch.testing.assert_close(residual(logits, E + 7, E[8] + 7), residual(logits, E, E[8]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(residual(logits, E + 7, E[8]), residual(logits, E, E[8]), atol=0.1)  # negative control


def test_by_hand():
    """Would catch entropy in bits: of four tokens two are as likely, so half of the mask gives way to their mean."""
    E = torch.tensor([[1.0, 0], [0, 1], [5, 5], [2, 2]])
    known = residual(torch.tensor([0.0, 0, -torch.inf, -torch.inf]), E, E[3])
    torch.testing.assert_close(known, torch.tensor([-0.75, -0.75]))


@given(seeds, contexts, shifts, st.sampled_from([None, 0.5]))
def test_without_a_residual_it_is_a_decode_in_blocks(seed, context, shift, threshold):
    """Would catch masks that change otherwise than by what is added, to the last bit, and logits of other rows."""
    view = blocks_of(context)
    plain = run(seed, in_blocks(view, threshold, shift=shift))
    assert same(plain, run(seed, in_blocks(view, threshold, shift=shift, forward=Nothing())))


def test_a_residual_changes_what_is_decoded():
    """Negative control for the test above."""
    assert changed("rcd", {"threshold": 0.5}, "nbdiff", {"threshold": 0.5}) > 0


@given(seeds, contexts, shifts)
def test_masks_are_mixed_with_what_the_forward_before_expected(seed, context, shift):
    """Would catch a residual of another forward, of written cells, or in a block that no forward has read: against the definition, a
    forward over all that is there, with embeddings mixed by hand."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    own = {"context": context, "shift": shift, "threshold": 0.5, "cache": "none", "residual_temperature": 1.5}
    canvas = prepare(model, prompt, "rcd", LENGTHS | own | {"eos": "fill"})
    E, before, x = model.wte.weight, {}, canvas.x.clone()
    for step in stream(canvas):
        window, added = step.window, torch.zeros(1, x.shape[1], E.shape[1])
        for slot, p in before.items():
            if x[0, slot] == MASK:
                share = -(p[p > 0] * p[p > 0].log()).sum() / torch.tensor(float(len(p))).log()
                added[0, slot] = share * (p @ E - E[MASK])
        at = step.at._replace(rows=torch.arange(window.start - shift, window.end - shift))
        logits = model(x[:, : step.at.query.stop], at, added=added[:, : step.at.query.stop])
        logits[..., MASK] = -torch.inf
        torch.testing.assert_close(step.logits, logits, rtol=1e-3, atol=1e-3)
        before = dict(zip(range(window.start, window.end), (step.logits[0] / 1.5).softmax(-1)))
        x = step.x.clone()


@given(seeds, contexts, shifts, st.sampled_from([None, 0.3]))
def test_its_cache_is_exact(seed, context, shift, add):
    """Would catch a residual that reaches finished text: what is mixed into masks is gone when they are written."""
    own = {"context": context, "shift": shift, "threshold": 0.5, "block_add_threshold": add}
    assert same(run(seed, "rcd", cache="none", **own), run(seed, "rcd", **own))


def test_the_table_is_never_copied():
    """Would catch embeddings in float32 beside those of a model in bfloat16: gigabytes that no check of the memory counts."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            made.append(op(*args, **(kwargs or {})))
            return made[-1]

    model = random_model(0).to(torch.bfloat16)
    E, logits = model.wte.weight, torch.randn(3, 40)
    with Watch():
        mixed = residual(logits, E, E[MASK])
    assert mixed.dtype == torch.float32 and not any(t.dtype == torch.float32 and t.shape == E.shape for t in made)
    exact = residual(logits, E.float(), E[MASK].float())
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.05)


def test_any_view_and_rule_will_do():
    """Would catch what reads a block's slots only: on a whole canvas the masks behind the block carry a residual, too."""
    mine = Strategy(threshold_rule(0.5), cached("prefix"), serial, forward=Residual())
    assert MASK not in answers(run(0, mine))[0]
    canvas = prepare(random_model(0), random_prompt(0, 5), mine, LENGTHS)
    next(stream(canvas))
    assert canvas.strategy.forward.soft[0, -1].any()


def test_what_makes_no_sense_is_refused():
    """Would catch a division by zero, and a traceback of a model without embeddings."""
    refused(random_model(0), "rcd", "between 0.01 and 100", residual_temperature=0.0)
    refused(Oracle("bits-4"), "rcd", "this model has none", gen_length=4, block_length=4)
