"""CreditDecoding: what raises a token's logit, and how it fades."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import ONE, again, answers, changed, run, same, seeds
from strategies import STRATEGIES, Strategy, Window, build
from strategies.credit import Credit
from strategies.d2f import pipeline
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import full, serial


@given(seeds, st.sampled_from([0.4, 0.7]))
def test_a_weight_of_zero_is_the_plain_threshold(seed, threshold):
    """Would catch logits that are raised by more than the credit."""
    assert same(run(seed, "credit", alpha=0.0, threshold=threshold), run(seed, "fast-dllm", threshold=threshold))


def test_credit_grows_with_every_forward_that_agrees():
    """Would catch credit that is not kept, not faded, given to written cells, or carried into the next block."""
    logits = torch.tensor([[[0.0, 0.0, 2.0], [0.0, 0.0, 2.0]]])
    credit = Credit(alpha=2.0, gamma=0.5, beta=0.5, inside=lambda s, window, at: logits.clone())
    candidates = torch.tensor([[True, False]])
    canvas = SimpleNamespace(x=torch.zeros(1, 2), forbid=lambda logits: None, candidates=lambda window: candidates)
    confidence = logits[0, 0].softmax(-1)[2].item()
    for age, owned in ((0, 1.0), (1, 1.5), (2, 1.75), (0, 1.0)):
        got = credit(canvas, Window(0, 2, age, 0, 0, None, **ONE), None)
        expected = 2.0 + 2.0 * torch.tensor(owned * confidence**0.5).log1p()
        torch.testing.assert_close(got[0, 0], torch.tensor([0.0, 0.0, expected]))
        assert got[0, 1].equal(logits[0, 1])


def test_what_is_never_written_earns_no_credit():
    """Would catch confidences among which the mask, and what eos=suppress rules out, still count: the credit would be theirs."""
    credit = Credit(alpha=2.0, gamma=0.5, beta=0.5, inside=lambda s, window, at: torch.tensor([[[1.0, 0.0, 2.0]]]))
    forbid = lambda logits: logits[..., 2].fill_(-torch.inf)
    canvas = SimpleNamespace(x=torch.zeros(1, 1), forbid=forbid, candidates=lambda window: torch.tensor([[True]]))
    confidence = torch.tensor([1.0, 0.0]).softmax(-1)[0]
    got = credit(canvas, Window(0, 1, 0, 0, 0, None, **ONE), None)[0, 0]
    torch.testing.assert_close(got, torch.stack((1 + 2 * (confidence**0.5).log1p(), torch.tensor(0.0), torch.tensor(-torch.inf))))


@pytest.mark.skipif("smoothing" not in STRATEGIES, reason="its file is not there")
@given(seeds)
def test_it_goes_around_another_way_to_logits(seed):
    """Would catch a plug inside that is not asked, or keeps what another decode has left in it."""
    soft = build("smoothing", threshold=0.6, fall=None, cache="prefix")
    around = Strategy(soft.rule, soft.view, serial, forward=Credit(0.0, 0.2, 0.8, inside=soft.forward))
    assert same(again(seed, around), again(seed, around), run(seed, "smoothing", threshold=0.6, fall=None, cache="prefix"))


def test_it_differs_from_a_threshold():
    """Negative control for the tests above."""
    plain = {"cache": "none", "threshold": 0.5}
    assert changed("fast-dllm", plain, "credit", plain) >= 1


def test_its_memory_is_that_of_one_decode():
    """Would catch state that leaks from one decode into the next when a Strategy is used twice."""
    mine = Strategy(threshold_rule(0.6), cached("dual"), serial, forward=Credit(0.7, 0.2, 0.8))
    assert answers(again(3, mine)) == answers(again(3, mine))
    for prompts in ([[1, 2, 3]], [[1, 2, 3], [4, 5]]):
        assert answers(again(3, mine, *prompts))[0] == answers(again(3, mine, [1, 2, 3]))[0]


def test_what_cannot_be_combined_is_refused():
    """Would catch a combination that runs and is wrong, also as a part inside another."""
    for inside in (None, Credit(1, 1, 1)):
        with pytest.raises(ValueError, match="credit.* needs one block at a time"):
            Strategy(threshold_rule(0.9), full, pipeline(0.1, 0.95), forward=Credit(1, 1, 1, inside))
