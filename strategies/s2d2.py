"""S2D2 (arXiv 2603.25702): a model of blocks reads its own draft as a model of the next token."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Cache, Layer, Pass
from strategies import Strategy, Window, choose, named, require
from strategies.blocks import Context, Shift, blocks_of, in_blocks
from strategies.d2f import block_mask
from strategies.fast_dllm import Threshold


def two_halves(n: int, layer: Layer, h: Tensor) -> Tensor:
    """Run a layer whose last n positions are a second copy of the first n: they are seen, and leave
    nothing in the cache."""

    def remember(cache: Cache, query, visible, own, q, k, v):
        cache.write(query[:n], k[:, :, :n], v[:, :, :n])
        both = zip(cache.read(visible[:-n]), (k, v))
        return tuple(torch.cat((kept, new[:, :, n:]), 2) for kept, new in both)

    return layer.run(h, remember)


class Verifier:
    """Read the drafted block as the same model does with blocks of one token, and write the longest
    run that it would have written, with its own token behind it: so at least one.

    worth: verify when so many of the drafted tokens can be expected to hold
    """

    def __init__(self, worth: float | None):
        self.worth = float("inf") if worth is None else worth

    def fits(self, s) -> None:
        require(not s.settings.cfg_scale, "cfg_scale", s.settings.cfg_scale, "0 beside a verifier")

    def __call__(self, s, window: Window, scores, candidates, logits, noise):
        commit, token = choose(s, window, scores, candidates)
        before = F.pad(candidates, (1, 0))[:, :-1]
        run = candidates & ((candidates & ~before).cumsum(-1) == 1)  # [b, L]: the first of masks
        holds = scores.confidence.masked_fill(~run, 1).cumprod(-1) * run
        wanted = run.any(-1) & (holds.sum(-1) >= self.worth)  # [b]
        if not wanted.any():
            return commit, token
        drafted = torch.where(candidates, scores.token, s.x[s.live, window.start : window.end])
        target = self.read(s, window, drafted)
        s.forbid(target)
        told = (target if noise is None else target + noise).argmax(-1)  # [b, L]
        wrong = run & (told != scores.token)
        right = run & (F.pad(wrong, (1, 0))[:, :-1].cumsum(-1) == 0)
        s.nfe, s.ran[s.live] = s.nfe + 1, s.ran[s.live] + wanted
        commit = torch.where(wanted[:, None], right, commit)
        return commit, torch.where(wanted[:, None], told, token)

    def read(self, s, window: Window, drafted: Tensor) -> Tensor:
        """Logits [b, L, V] for each cell of the block, given all before it with the draft."""
        start, end, n, device = window.start, window.end, drafted.shape[1], drafted.device
        before = block_mask(0, 1, start - 1, end - 1, device)  # [L, end - 1], strictly
        if s.shift:  # the row before a token predicts it: the draft itself is enough
            at = Pass(slice(start - 1, end - 1), slice(0, end - 1), before)
            ids = torch.cat((s.x[s.live, start - 1 : start], drafted[:, :-1]), 1)  # [b, L]
        else:  # behind the draft as many masks, each of which sees itself and the draft before it
            own = torch.arange(start, end, device=device)
            seen = torch.cat((torch.arange(end, device=device), own))
            draft = F.pad(block_mask(0, 1, start, end, device), (0, n))  # [L, end + L]
            alone = torch.eye(n, dtype=torch.bool, device=device)
            mask = torch.cat((draft, torch.cat((F.pad(before, (0, 1)), alone), 1)))
            rows, layer = slice(n, 2 * n), partial(two_halves, n)
            at = Pass(torch.cat((own, own)), seen, mask, rows, layer=layer)
            ids = torch.cat((drafted, torch.full_like(drafted, s.mask_id)), 1)  # [b, 2L]
        s.rows += ids.numel()
        return s.model(ids, at, s.cache, s.start[s.live] if s.padded else None)


@named("s2d2", model="tiny-ar", adapter="tiny-nbdiff")
def s2d2(
    threshold: Threshold = 0.9,
    worth: float | None = 0.0,
    context: Context = "causal",
    shift: Shift = 1,
) -> Strategy:
    """S2D2 (arXiv 2603.25702): a block is drafted at once, and read from left to right by the same
    model, which writes what it would have written token by token.

    worth: verify when so many of the drafted tokens can be expected to hold; 0 always, none never
    context: what finished tokens see: their block and all before it, or what is before them, and
        the prompt all of itself (token), or not even that (causal)
    shift: 1 for a model whose logits say what comes next, 0 for one whose logits say what is there
    """
    own = {"choose": Verifier(worth), "block_length": 8, "shift": shift}
    return in_blocks(blocks_of(context), threshold, **own)
