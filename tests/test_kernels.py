"""Scores against their definitions in float64, and sampling against its distribution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels


def spread(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 6


@given(seed=st.integers(0, 999), V=st.integers(2, 50), forbidden=st.booleans())
def test_scores_equal_their_definitions(seed, V, forbidden):
    """Would catch a wrong formula, and -inf logits that turn into NaN."""
    logits = spread(seed, 3, 5, V + 1)
    if forbidden:
        logits[..., V // 2] = -torch.inf
    scores = kernels.score(logits)
    p = torch.softmax(logits.double(), dim=-1)
    best = p.sort(dim=-1, descending=True).values
    assert scores.token.equal(logits.argmax(-1))
    torch.testing.assert_close(scores.confidence.double(), best[..., 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.doubt.double(), (1 - best[..., 0]) / best[..., 0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(scores.margin.double(), best[..., 0] - best[..., 1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores.entropy.double(), -torch.xlogy(p, p).sum(-1), rtol=1e-4, atol=1e-5)


def test_doubt_orders_what_float32_probabilities_cannot():
    """Would catch scores that go through a probability: both of these are exactly 1.0 in float32."""
    scores = kernels.score(torch.tensor([[0.0, 30.0], [0.0, 40.0]]))
    assert scores.confidence.tolist() == [1.0, 1.0]
    assert scores.doubt[0] > scores.doubt[1] > 0


def test_bfloat16_logits_are_scored_in_float32():
    """Would catch confidences rounded to bfloat16, where everything above 0.998 is 1."""
    logits = spread(0, 4, 30).bfloat16()
    for half, full in zip(kernels.score(logits), kernels.score(logits.float())):
        assert half.equal(full)


@given(seed=st.integers(0, 999), temperature=st.floats(0.1, 3))
def test_a_sampled_token_is_scored_by_its_clean_probability(seed, temperature):
    """Would catch confidences taken from the noisy logits, or from the best token instead of the sampled one."""
    logits = spread(seed, 4, 6, 20)
    noise = kernels.gumbel(logits, temperature, torch.Generator().manual_seed(seed))
    scores = kernels.score(logits, noise)
    assert scores.token.equal((logits + noise).argmax(-1))
    p = torch.softmax(logits.double(), dim=-1).gather(-1, scores.token[..., None])[..., 0]
    torch.testing.assert_close(scores.confidence.double(), p, rtol=1e-3, atol=1e-7)
    assert scores.doubt.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_softmax_at_its_temperature(temperature):
    """Would catch noise of the wrong scale; chi-squared of 20,000 draws over 5 tokens, 99.99 % bound for 4 degrees of freedom."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    n = 20_000
    many = logits.expand(n, 5)
    token = kernels.score(many, kernels.gumbel(many, temperature, torch.Generator().manual_seed(0))).token
    expected = torch.softmax(logits / temperature, dim=-1) * n
    chi_squared = ((torch.bincount(token, minlength=5) - expected) ** 2 / expected).sum()
    assert chi_squared < 23.5


def test_the_same_seed_draws_the_same_noise():
    """Would catch randomness from outside the one generator."""
    logits = spread(0, 2, 3, 7)
    one, two, other = (kernels.gumbel(logits, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.equal(two) and not one.equal(other)


def test_noise_is_drawn_in_64_bits():
    """Would catch noise of 24 bits, which never exceeds 16.7: what a large vocabulary's unlikely tokens would win by is cut off."""
    drawn = torch.empty(3, 50, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(5))
    noise = kernels.gumbel(torch.zeros(3, 50), 0.7, torch.Generator().manual_seed(5))
    assert noise.dtype == torch.float32 and noise.equal((-0.7 * drawn.log()).float())
