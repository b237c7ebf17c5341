"""EB-Sampler (arXiv 2505.24857): as many tokens at once as their joint entropy allows."""

from torch import Tensor

from kernels import Scores
from strategies import Rule, Strategy, Window, named, rank
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import ORDERS, serial


def entropy_bound(gamma: float) -> Rule:
    """The longest run of the surest tokens whose entropies, but for the largest, sum to at most
    gamma: what is written at once then differs from one after the other by gamma nats at most."""

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        place = rank(scores.doubt, candidates)
        entropy = scores.entropy.gather(-1, place.argsort(-1))  # [N, L], the surest's first
        rest = entropy.cumsum(-1) - entropy.cummax(-1).values  # never falls
        return (rest <= gamma).gather(-1, place)

    return rule


@named("eb")
def eb(gamma: float = 0.1, cache: CacheSetting = "none") -> Strategy:
    """EB-Sampler (arXiv 2505.24857): as many tokens, those of least entropy first, as their joint
    entropy allows.

    gamma: how much the entropies of what a forward writes may sum to, the largest left out, in nats
    """
    return Strategy(entropy_bound(gamma), cached(cache), serial, order=ORDERS["entropy"])
