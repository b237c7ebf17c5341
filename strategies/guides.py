"""Guided by a model that reads from left to right, for APD (arXiv 2506.00413) and FlashDLM.

Letters: n cells of the window, each a block of one token.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Cache, LLaDA, Pass
from strategies import Strategy, Window, choose, has, require, scored
from strategies.ar import causal
from strategies.d2f import in_flight
from strategies.fast_dllm import threshold_rule


def together(strategy: Strategy) -> None:
    reads = isinstance(strategy.choose, Reader) and strategy.block_length == 1 and strategy.fixed
    if not reads or getattr(strategy.schedule, "check", None) is not together:
        raise ValueError("a guide needs the frontier, and that, like the trailing view, a guide")
    in_flight(strategy)


def frontier(lookahead: int):
    """From left to right, every row at a place of its own: its first mask is open and must be
    written, and so many masks in all may be."""

    @has(check=together)
    def schedule(s) -> Iterator[Window]:
        final = 0
        while len(s.live):
            masked = s.masked()[..., 0]  # [b, n]
            first = masked & (masked.cumsum(-1) == 1)
            place = first.int().argmax(-1)  # [b]
            s.opened[s.live] = (place + lookahead).clamp(max=s.blocks)
            places = [row.index(True) for row in s.unfilled]
            low, high = min(places), min(max(places) + lookahead, s.blocks)
            yield (window := s.window(low, high, None, final, first[:, low:high]))
            final = window.start

    return schedule


def trailing(recompute: int | None):
    """Recompute what was written last, so many slots before it and the masks that are open; what
    lies behind is not there yet (APD).

    With 0, a token is computed once after it was written, and never again (FlashDLM's FreeCache,
    token by token); None recomputes everything.
    """

    def lowest(s) -> Tensor:
        """The first slot of each row that is computed, [b, 1]."""
        written = s.written[s.live]  # [b, S]
        # the first of those written last; 0 when nothing is written yet
        low = (written == written.amax(-1, keepdim=True)).int().argmax(-1, keepdim=True)
        return torch.zeros_like(low) if recompute is None else (low - recompute).clamp(min=0)

    @has(check=together, asks=lowest)
    def view(s, window: Window) -> Pass:
        high = s.prompt_length + s.opened[s.live, None]  # [b, 1]
        at = slice(min(low for (low,) in s.told[lowest]), window.end)
        query = torch.arange(at.start, at.stop, device=s.x.device)
        own = (query >= lowest(s)) & (query < high)  # [b, Q]
        seen = torch.arange(window.end, device=s.x.device) < high  # [b, K]
        mask = seen[:, None, None].expand(-1, 1, len(query), -1)
        return Pass(at, slice(0, window.end), mask, own=own)

    return view


class Reader:
    """A model of the next token that reads what the rule would write, and lets the longest accepted
    run from a row's first mask on be written.

    A token is accepted if it is among the `top` first choices of share * z + (1 - share) * z of the
    guide, both with the noise it was drawn by.
    correct: the first that is not becomes the guide's own choice (FlashDLM); otherwise a row's
    first token is always accepted (APD)
    """

    check = staticmethod(together)

    def __init__(self, model: LLaDA | None, share: float, top: int, correct: bool):
        self.model, self.share, self.top, self.correct = model, share, top, correct
        self.cache: Cache | None = None

    def fits(self, s) -> None:
        """The guide's tokens must be the model's, and its sequences as long."""
        if self.model is None:
            raise ValueError("a guide is needed: a model of the next token, of the same vocabulary")
        theirs, ours = self.model.config, s.model.config
        for name in ("vocab_size", "mask_token_id", "eos_token_id"):
            their, our = getattr(theirs, name), getattr(ours, name)
            require(their == our, f"the guide's {name}", their, f"{our} as in the model it guides")
        longest, most = s.x.shape[1] - int(s.start.min()), theirs.max_sequence_length
        require(longest <= most, "prompt and answer", longest, f"at most the guide's {most} tokens")

    def memory(self, s) -> int:
        config, S = self.model.config, s.x.shape[1]
        logits = s.settings.gen_length * config.vocab_size * 4 * 4  # as in Canvas.check_memory
        return config.slot_width * S * self.model.dtype.itemsize + logits

    def __call__(self, s, window: Window, scores, candidates, logits, noise):
        """Logits and noise [b, n, V] -> which cells to write, bool [b, n], and with what."""
        commit, token = choose(s, window, scores, candidates)
        drafted = torch.where(commit, token, s.x[s.live, window.start : window.end])
        target = self.share * logits + (1 - self.share) * self.read(s, window, drafted)
        s.forbid(target)
        target = target if noise is None else target + noise
        better = (target > target.gather(-1, token[..., None])).sum(-1)  # [b, n]
        accepted = commit & (better < self.top)
        if not self.correct:
            accepted |= window.must
        rejected = candidates & ~accepted
        nth = rejected.cumsum(-1)
        commit = accepted & (nth == 0) | rejected & (nth == 1) & self.correct
        token = torch.where(rejected, target.argmax(-1), token)
        if s.eos == "stop":  # nothing is written behind an EOS
            ends = commit & s.is_end(token)
            commit &= F.pad(ends, (1, 0))[:, :-1].cumsum(-1) == 0
        cells = torch.arange(window.start, window.end, device=commit.device) - s.prompt_length
        s.opened[s.live] = torch.where(commit, cells + 1, 0).amax(-1)  # what lies behind is closed
        return commit, token

    def asks(self, s) -> Tensor:
        """The last slot of those that each row wrote last, [b, 1]."""
        written = s.written[s.live]
        return (written == written.amax(-1, keepdim=True)).cumsum(-1).argmax(-1, keepdim=True)

    def read(self, s, window: Window, drafted: Tensor) -> Tensor:
        """Logits [b, n, V] of what comes at each cell of the window, given all before it with
        `drafted`, int64 [b, n], in place."""
        if self.cache is None:
            self.cache = self.model.new_cache(len(s.live), s.x.shape[1])
        else:  # from what was written last, which may be corrected: all behind it has read another
            self.cache.keep(torch.searchsorted(self.live, s.live))
            last = min(last for (last,) in s.told[self.asks])
            window = replace(window, final=min(last, self.end))
        self.live, self.end, at = s.live, window.end - 1, causal(s, window)
        at = at._replace(rows=scored(at, window, shift=1))
        ids = torch.cat((s.x[s.live, : window.start], drafted), 1)[:, at.query]  # [b, Q]
        start = s.start[s.live] if s.padded else None
        s.nfe, s.rows = s.nfe + 1, s.rows + ids.numel()
        s.ran[s.live] += 1
        return self.model(ids, at, self.cache, start)


def left_to_right(reader: Reader, recompute: int | None, lookahead: int) -> Strategy:
    """Draft every mask that may be written, and write what the guide makes of it."""
    view, schedule = trailing(recompute), frontier(lookahead)
    own = {"choose": reader, "eos": "stop", "block_length": 1, "fixed": True}
    return Strategy(threshold_rule(0.0), view, schedule, **own)
