"""WeDLM (arXiv 2512.22737): causal attention in an order in which masks come last."""

from dataclasses import replace

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Count, Rule, Strategy, View, Window, has, named, rank
from strategies.d2f import in_flight
from strategies.guides import frontier


def in_order(cached: bool = True) -> View:
    """Each slot sees those before it, masks behind all that is written. So what stood before the
    first mask when it was last computed has seen text alone, and is final."""

    def leftmost(s) -> Tensor:
        """The first mask of each row, or what was written last if that is before, [b, 1]."""
        new = (s.x == s.mask_id) | (s.written == s.nfe)  # at first the prompt, too
        return new[s.live].int().argmax(-1, keepdim=True) * cached

    @has(settled=0, asks=leftmost)
    def view(s, window: Window) -> Pass:
        at = slice(min(left for (left,) in s.told[leftmost]), window.end)
        slots, high = torch.arange(at.stop, device=s.x.device), s.prompt_length + s.opened[s.live]
        open_to, query = high[:, None], slots[at]
        place = slots + at.stop * (s.x[s.live, : at.stop] == s.mask_id)  # [b, K]
        mask = (place[:, query, None] >= place[:, None]) & (slots < open_to)[:, None]  # [b, Q, K]
        own = (query >= leftmost(s)) & (query < open_to)  # [b, Q]
        return Pass(at, slice(0, at.stop), mask[:, None], own=own)

    return view


def clear(threshold: float, penalty: float) -> Rule:
    """Every token of less entropy than this, penalty included; in each row the one of least."""

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        both = candidates, scores.entropy  # [N, 1] each
        masked, entropy = (each.reshape(len(window.live), -1) for each in both)  # [b, n]
        entropy = entropy + penalty * (masked.cummax(-1).values.cumsum(-1) - 1)
        return ((entropy < threshold) | (rank(entropy, masked) == 0)).view_as(candidates)

    return rule


@named("wedlm", adapter="tiny-wedlm")
def wedlm(threshold: float = 0.4, penalty: float = 0.02, window: Count = 16) -> Strategy:
    """WeDLM (arXiv 2512.22737): a window of masks that see what is written and the masks before
    them; what it leaves behind is kept as by a model of the next token.

    threshold: commit every token with less entropy than this, in nats
    penalty: what counts as entropy for each slot from the first mask on
    window: slots from the first mask on that may be written
    """

    @has(check=in_flight, cuts=True)
    def sliding(s):  # no cell must move: the rule writes one in each row
        return (replace(w, must=torch.zeros_like(w.must)) for w in frontier(window)(s))

    one = {"block_length": 1, "fixed": True}
    return Strategy(clear(threshold, penalty), in_order(), sliding, eos="stop", **one)
