"""Fast-dLLM++ (arXiv 2606.02955): what is written together is bounded by each token's own doubt."""

from torch import Tensor

from kernels import Scores
from strategies import Share, Strategy, Window, named, rank
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import serial


@named("frechet")
def frechet(margin: Share = 0.25, cache: CacheSetting = "prefix") -> Strategy:
    """Fast-dLLM++ (arXiv 2606.02955): the surest tokens, as long as together they are
    likelier than another choice by a margin, whatever their dependence.

    margin: delta; by how much Frechet's lower bound on their joint probability must lie above the
        upper bound of another choice's; 1 commits one token a forward
    """

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        place = rank(scores.doubt, candidates)
        error = (scores.doubt / (1 + scores.doubt)).gather(-1, place.argsort(-1))  # [N, L]
        return (error.cumsum(-1) + error < 1 - margin).gather(-1, place)

    return Strategy(rule, cached(cache), serial)
