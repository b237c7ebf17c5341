"""Scores against their definitions in float64, and sampling against its distribution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels

NAMES = ("token", "doubt", "confidence", "margin", "entropy", "standing")


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
    half, full = kernels.score(logits, stands=logits.argmin(-1)), kernels.score(logits.float(), stands=logits.argmin(-1))
    for name in NAMES:
        assert getattr(half, name).equal(getattr(full, name))


def test_the_surest_are_scored_as_exactly_as_others():
    """Would catch a doubt that is 1 / p - 1, or of which the best token was taken away: in float32 1e-9 is lost beside 1."""
    logits = spread(0, 5, 300)
    logits[torch.arange(5), 7] += torch.tensor([30.0, 40, 60, 80, 300])
    scores, wide = kernels.score(logits), logits.double()
    doubt = (wide.scatter(-1, scores.token[:, None], -torch.inf).logsumexp(-1) - wide.amax(-1)).exp()
    torch.testing.assert_close(scores.doubt[:4], doubt[:4].float(), rtol=1e-5, atol=0)
    assert scores.doubt[4] == 0
    entropy = doubt + ((wide - wide.amax(-1, True)).exp() * (wide.amax(-1, True) - wide)).sum(-1)  # to first order
    torch.testing.assert_close(scores.entropy[2:4], entropy[2:4].float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("V", [1, 7, 128, 384, 1000])
def test_of_equal_logits_the_first_wins(V):
    """Would catch a search in parts that takes the last, or another part's place; 384 are three parts, 7 and 1000 have other sizes."""
    logits = spread(V, 40, V).round()  # many are equal
    scores, before = kernels.score(logits), logits.clone()
    assert scores.token.equal(logits.argmax(-1)) and kernels.score(torch.zeros(3, V)).token.eq(0).all()
    assert logits.equal(before)  # the best is put back


def test_logits_of_any_strides_are_scored():
    """Would catch a write into memory that rows share, and a view of what has none: scores change logits, and put them back."""
    one = spread(0, 60)
    for logits in (one.expand(3, 60), spread(1, 60, 3).T, spread(2, 4, 6, 60)[:, 1::2]):
        plain = logits.clone(memory_format=torch.contiguous_format)
        for name in ("token", "doubt", "margin", "entropy"):
            assert getattr(kernels.score(logits), name).equal(getattr(kernels.score(plain), name))
        assert logits.equal(plain)


@given(seed=st.integers(0, 999))
def test_the_odds_against_any_token_that_stands(seed):
    """Would catch odds against the best token in the place of those against another, and what is forbidden as NaN or infinity."""
    logits = spread(seed, 4, 6, 20)
    logits[..., 3] = -torch.inf
    stands = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(seed))
    scores = kernels.score(logits, stands=stands)
    p = torch.softmax(logits.double(), dim=-1).gather(-1, stands[..., None])[..., 0]
    torch.testing.assert_close(1 / (1 + scores.standing.double()), p, rtol=1e-3, atol=1e-7)
    assert kernels.score(logits, stands=scores.token).standing.equal(scores.doubt)
    assert kernels.score(logits, stands=torch.full((4, 6), 3)).standing.eq(kernels.LARGEST).all()


def test_what_nothing_asks_for_is_not_computed():
    """Would catch an entropy in every forward that no rule reads, and one for each rule that does: both are a pass over the logits."""
    asked = []

    def run(function, *tensors):
        asked.append(function.__name__)
        return function(*tensors)

    scores = kernels.score(spread(0, 2, 6, 20), run=run)
    lines = scores.each(lambda t: t.reshape(4, 3)).ordered(torch.ones(4, 3))
    assert asked == ["surest"] and lines.doubt.eq(1).all()
    for _ in range(2):
        assert lines.entropy.equal(scores.entropy.view(4, 3)) and lines.margin.equal(scores.margin.view(4, 3))
    assert asked == ["surest", "entropy"]


def test_what_is_fused_equals_what_is_not():
    """Would catch two definitions of the same scores: what a compiler fuses is written otherwise."""
    logits = spread(0, 4, 6, 384)
    logits[..., 5], logits[0, 0, 9] = -torch.inf, 90
    one, other = (kernels.score(logits, stands=logits.argmin(-1), run=run) for run in (None, lambda function, *tensors: function(*tensors)))
    for name in NAMES:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6)


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


def as_cuda_draws_float32(n: int) -> torch.Tensor:
    """Exponentials of 24 bits, as PyTorch's code for CUDA makes them: -log of a uniform, and of one that is nearly 1 half an epsilon."""
    uniform = 1 - torch.rand(n, generator=torch.Generator().manual_seed(0))  # float32, (0, 1]
    half = torch.finfo(torch.float32).eps / 2
    return torch.where(uniform >= 1 - half, half, -uniform.log())


def on_the_grid(waiting: torch.Tensor) -> float:
    """Of the exponentials below 1e-5, whose noise wins, the share that is nearly a multiple of 2 ** -24."""
    few = waiting.double()[waiting < 1e-5] * 2**24
    assert len(few) > 40
    return ((few - few.round()).abs() < 0.1).double().mean().item()


def test_the_noise_that_wins_is_no_multiple_of_a_uniforms_last_bit():
    """Would catch noise in float32 on a GPU: what wins a large vocabulary comes from the smallest exponentials, of which 24 bits leave
    multiples of 6e-8, and none below. A fifth is as near by chance; the control is near always."""
    noise = kernels.gumbel(torch.zeros(8_000_000), 1.0, torch.Generator().manual_seed(0))
    assert on_the_grid((-noise.double()).exp()) < 0.4
    control = as_cuda_draws_float32(8_000_000)
    assert on_the_grid(control) > 0.95 and control.min() >= 2**-24


def test_sampling_follows_the_softmax_over_a_thousand_tokens():
    """Would catch an arg-max that favours some places of a vocabulary; chi-squared of 20,000 draws, 99.99 % bound for 999 degrees of
    freedom. Noise of 24 bits passes this one: it is the tail alone that it lacks."""
    logits, generator = torch.linspace(0, 3, 1000), torch.Generator().manual_seed(0)
    draw = lambda: kernels.score(many := logits.expand(2000, 1000), kernels.gumbel(many, 1.0, generator)).token
    count = sum(torch.bincount(draw(), minlength=1000) for _ in range(10))
    expected = torch.softmax(logits, dim=-1) * 20_000
    assert ((count - expected) ** 2 / expected).sum() < 1172
