"""EB-Sampler: a bound on entropies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import Scores
from shared import changed, run, same, seeds
from strategies.eb import entropy_bound

entropies = st.lists(st.floats(0.0, 3.0), min_size=8, max_size=8)
some = st.sets(st.integers(0, 7), min_size=1)


def accepted(entropy: list[float], masked: set[int], gamma: float, doubt=None) -> list[int]:
    values = torch.tensor([entropy])
    candidates = torch.tensor([[i in masked for i in range(8)]])
    scores = Scores(torch.zeros(1, 8), values if doubt is None else torch.tensor([doubt]), lambda name: values)
    return (entropy_bound(gamma)(scores, candidates, None) & candidates)[0].nonzero()[:, 0].tolist()


@given(entropies, some, st.floats(0, 5), entropies)
def test_it_is_the_longest_run_within_the_bound(entropy, masked, gamma, doubt):
    """Would catch a sum with the largest (JetEngine's), a sum without the last instead, and one that depends on cells that are written."""
    order = sorted(masked, key=lambda i: (torch.tensor(doubt)[i].item(), i))
    told = [torch.tensor(entropy)[i].item() for i in order]
    rest = [sum(told[:n]) - max(told[:n]) for n in range(1, len(told) + 1)]
    if all(abs(r - gamma) > 1e-5 for r in rest):
        assert accepted(entropy, masked, gamma, doubt) == sorted(order[: sum(r <= gamma for r in rest)])


def test_a_maximum_is_that_of_the_row():
    """Would catch a maximum over the batch (d2Cache's), by its own example: one token of entropy 1.5 leaves no room for its neighbour's."""
    entropy = torch.tensor([[0.777, 1.498], [0.1, 0.1]])
    rule, every = entropy_bound(1.0), torch.ones(2, 2, dtype=torch.bool)
    both = rule(Scores(torch.zeros(2, 2), entropy, lambda name: entropy), every, None)
    assert both.tolist() == [[True, True], [True, True]]
    alone = rule(Scores(torch.zeros(1, 2), entropy[:1], lambda name: entropy[:1]), every[:1], None)
    assert alone.equal(both[:1])


@given(seeds, st.sampled_from(["none", "dual"]))
def test_a_bound_of_zero_is_llada_by_entropy_and_none_fills_a_block_at_once(seed, cache):
    """Would catch a first token that counts, and a bound that stops short."""
    assert cache == "dual" or same(run(seed, "eb", gamma=0.0), run(seed, "llada", remasking="entropy"))
    assert run(seed, "eb", gamma=1e6, cache=cache).nfe == 3


@given(entropies, some, st.floats(0, 3), st.floats(0, 3))
def test_more_is_accepted_the_looser_the_bound(entropy, masked, one, other):
    """Would catch a choice that is no run of the surest."""
    tight, loose = (set(accepted(entropy, masked, gamma)) for gamma in sorted((one, other)))
    assert tight <= loose and min(masked, key=lambda i: (entropy[i], i)) in tight


def test_it_differs():
    """Negative control: the bound matters, and so does the order."""
    assert changed("eb", {"gamma": 2.0}, "eb", {"gamma": 0.0}) >= 3
    with pytest.raises(ValueError, match="gamma is -1"):
        run(0, "eb", gamma=-1)
