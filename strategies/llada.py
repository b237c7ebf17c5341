"""LLaDA's own sampling (arXiv 2502.09992): one block after the other, so many tokens a forward."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Strategy, Window, has, named, rank


def serial(s) -> Iterator[Window]:
    """One block after the other, all rows of the batch together (semi-autoregressive sampling)."""
    final, forwards = 0, (s.settings.steps or s.settings.gen_length) // s.blocks
    for block in range(s.blocks):
        s.opened.fill_(block + 1)
        age = 0
        while any(row[block] for row in s.unfilled):
            must = s.masked()[:, block].any(-1, keepdim=True)
            yield (window := s.window(block, block + 1, age, final, must, forwards - age))
            final, age = window.start, age + 1


def one_block(strategy: Strategy, what: str) -> None:
    """For the checks of parts that count a block's forwards, or remember them."""
    if strategy.schedule is not serial:
        raise ValueError(f"{what} needs one block at a time: the schedule `serial`")


def remembers(strategy: Strategy) -> None:
    one_block(strategy, "a rule that remembers a block's tokens")


@has(settled=0, shifts=True)
def full(s, window: Window) -> Pass:
    """Recompute the whole canvas."""
    return Pass(slice(0, s.x.shape[1]))


@has(quota=True, masks_only=True, check=lambda own: one_block(own, "a quota of tokens per step"))
def quota(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
    """Spread a block's tokens evenly over its forwards, the remainder first, the surest first."""
    masks = candidates.sum(-1, keepdim=True)  # [N, 1]
    count = (masks + window.remaining - 1) // window.remaining  # rounded up
    return rank(scores.doubt, candidates) < count


class Timesteps:
    """Dream's quota (arXiv 2508.15487): of m masks m (1 - s / t), rounded down, as the time falls
    from t to s, in even steps from 1 to eps; in the last step all. Steps that would write nothing
    are skipped: the next sees the same. Where a view leads, its refresh is step 0."""

    quota, check = True, staticmethod(quota.check)

    def __init__(self, eps: float = 1e-3):
        self.eps = eps

    def fits(self, s) -> None:
        self.leads, self.step = s.leads, torch.zeros_like(s.start)[:, None]  # [B, 1]: the next

    def __call__(self, scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        live, masks = window.live, candidates.sum(-1, keepdim=True)  # [N, 1]
        if window.age == 0:
            time = torch.linspace(1, self.eps, window.remaining + 1, device=live.device)
            self.share = 1 - time[1:] / time[:-1]  # float32 [steps], as in the authors' code
            self.step.fill_(min(self.leads, window.remaining - 1))
            if self.leads:
                return rank(scores.doubt, candidates) < 1
        count = (masks * self.share).long()  # [N, steps]
        count[:, -1:] = masks
        number = torch.arange(len(self.share), device=live.device)
        step = ((count > 0) & (number >= self.step[live])).int().argmax(-1, keepdim=True)  # [N, 1]
        self.step[live] = (step + 1).clamp(max=len(number) - 1)
        return rank(scores.doubt, candidates) < count.gather(-1, step)


# Which tokens are the surest: a doubt for every cell. None is the doubt of the scores themselves.
ORDERS: dict[str, Callable[[Scores, torch.Generator], Tensor] | None] = {
    "low_confidence": None,
    "margin": lambda scores, generator: 1 - scores.margin,
    "entropy": lambda scores, generator: scores.entropy,
    "random": lambda scores, draw: torch.empty_like(scores.doubt).uniform_(generator=draw),
}
OrderName = Literal["low_confidence", "margin", "entropy", "random"]


@named("llada")
def llada(remasking: OrderName = "low_confidence") -> Strategy:
    """LLaDA (arXiv 2502.09992): a fixed number of the surest tokens each forward, nothing reused.

    remasking: the surest are those of least doubt, widest margin, least entropy, or any at random
    """
    return Strategy(quota, full, serial, order=ORDERS[remasking])
