"""WINO (arXiv 2507.18578): much is written, and what was is looked at again in its absence."""

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import MASKED, Share, Strategy, Sure, Window, named, rank
from strategies.llada import remembers, serial


def shadowed(s, window: Window) -> Pass:
    """The canvas, and shadows of the block: masks in its places that see each other and all but the
    token in their own place. Nothing else sees them."""
    slots = torch.arange(S := s.x.shape[1], device=s.x.device)
    query = torch.cat((slots, slots[window.start : window.end]))
    shadow = torch.arange(len(query), device=query.device) >= S
    mask = torch.where(shadow, shadow[:, None], ~shadow[:, None] | (query != query[:, None]))
    rows = torch.cat((query[S:], S + slots[: len(query) - S]))  # the block's, and its shadows'
    return Pass(query, mask=mask, rows=rows, hidden=shadow)


def by_shadows(s, window: Window, at: Pass) -> Tensor:
    """Logits [b, L, V]: where a token is written, those of its shadow."""
    logits, shadows = s.forward(window, at).chunk(2, 1)
    return torch.where(s.candidates(window)[..., None], logits, shadows)


class Wino:
    """Of 5 to 20 commits a forward at most, fewer are taken back than were made the time before."""

    revises, check = True, staticmethod(remembers)

    def __init__(self, threshold: float, back: float):
        self.threshold, self.back = threshold, back

    def __call__(self, scores: Scores, candidates: Tensor, window: Window):
        if window.age == 0:  # what the forward before committed, int64 [B, 1]
            self.last = torch.full((window.batch, 1), 30, device=candidates.device)
        place, standing = rank(scores.doubt, candidates), scores.standing
        most = (candidates.sum(-1, keepdim=True) * 0.7).int().clamp(5, 20)  # [N, 1]
        sure = (scores.confidence > self.threshold) & (place < most)
        commit, written = candidates & (sure | (place == 0)), window.own & ~candidates
        count, last = commit.sum(-1, keepdim=True), self.last[window.live]
        drop = written & (1 / (1 + standing) < self.back) & (count > 1)
        drop &= (drop.sum(-1, keepdim=True) < last) | (rank(-standing, written) < last - 1)
        self.last[window.live] = count
        return commit | drop, torch.where(drop, MASKED, scores.token)


@named("wino")
def wino(threshold: Sure = 0.6, threshold_back: Share = 0.9) -> Strategy:
    """WINO (arXiv 2507.18578): bold commits, some of which are taken back when seen from outside.

    threshold: tau1; commit tokens more confident than this
    threshold_back: tau2; take back tokens that are less likely than this without themselves
    """
    rule = Wino(threshold, threshold_back)
    return Strategy(rule, shadowed, serial, forward=by_shadows, block_length=None)
