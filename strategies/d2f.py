"""D2F (arXiv 2508.09192): blocks in flight, over a mask that leaves finished blocks as they are."""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Pass
from strategies import Schedule, Share, Strategy, Sure, View, Window, has, named, trait
from strategies.fast_dllm import threshold_rule


def in_flight(strategy: Strategy) -> None:
    """Refuse what counts the forwards of a block, which several blocks at once share."""
    together = trait(strategy.view, "check") is trait(strategy.schedule, "check")
    if trait(strategy.view, "settled") > 0 and not together:  # not made for each other
        raise ValueError("pipelined blocks need a view that never asks for the age of a block")
    if trait(strategy.rule, "revises"):
        raise ValueError("a rule that changes written tokens needs one block at a time")


def pipeline(add: float, act: float, first_only: bool = False) -> Schedule:
    """Several blocks at once: the next opens when the last is filled up to the share `add`, and
    must move when its predecessor is filled up to the share `act`.

    first_only: of the blocks that must move, hold only the first to it (d3LLM). Each row of a batch
    runs its own pipeline; the window spans them all. Numbers at line ends are docs/d2f.md's steps.
    """

    def filled_before(s) -> Tensor:
        progress = (~s.masked()).sum(-1) / s.block_length  # [b, n]
        return F.pad(progress, (1, 0), value=1.0)  # [b, n + 1]: the prompt being filled

    def opening(s) -> Tensor:
        """Open blocks, and tell how many of each row are full, and open."""
        before, opened = filled_before(s), s.opened[s.live]
        opened = opened.clamp(min=1) if first_only else opened
        full = (~s.masked().any(-1)).cumprod(-1).sum(-1)  # [b]: leading blocks without a mask
        more = before.gather(1, opened.clamp(max=s.blocks)[:, None])[:, 0] >= add  # 1
        more &= opened < s.blocks
        if s.eos == "stop":
            more &= ~s.ended().any(-1)
        # a template may fill blocks that were never opened
        s.opened[s.live] = (opened + more).maximum(full + 1).clamp(max=s.blocks)
        return torch.stack((full, s.opened[s.live]), 1)

    @has(check=in_flight, asks=opening)
    def schedule(s) -> Iterator[Window]:
        final = 0
        while len(s.live):
            must = filled_before(s)[:, :-1] >= act  # 2
            if first_only:
                must &= (s.masked() & s.is_open()).any(-1)
                must &= must.cumsum(-1) == 1
            low, high = (end(numbers) for end, numbers in zip((min, max), zip(*s.told[opening])))
            yield (window := s.window(low, high, None, final, must[:, low:high]))  # 4, 6
            final = window.start  # 5: the forward saw the final tokens of every block before it

    return schedule


def block_mask(prompt_length: int, block_length: int, first: int, end: int, device=None) -> Tensor:
    """Which of the positions first .. end sees which slot before end, bool [Q, K]: its own block,
    earlier ones and the prompt. With a prompt of 2 and blocks of 2, the blocks of six slots are
    0 0 1 1 2 2; slot 3 sees the first four."""
    position = torch.arange(end, device=device) - prompt_length
    block = (position.div(block_length, rounding_mode="floor") + 1).clamp(min=0)
    return block[first:, None] >= block


def block_causal(cached: bool = True) -> View:
    """A block sees itself and all before it; so keys and values of a finished block never change,
    and it is enough to recompute what was not final yet: the cache is exact. Without it everything
    is recomputed, which is the definition that the cache must equal."""

    @has(settled=0, shifts=True)
    def view(s, window: Window) -> Pass:
        first = min(window.final, window.start - s.shift) if cached else 0
        end = window.end
        mask = block_mask(s.prompt_length, s.block_length, first, end, s.x.device)
        return Pass(slice(first, end), slice(0, end) if cached else None, mask)

    return view


@named("d2f", adapter="tiny-d2f")
def d2f(
    block_add_threshold: Share = 0.1,
    decoded_token_threshold: Share = 0.95,
    skip_threshold: Sure = 0.9,
    cache: Literal["none", "exact"] = "exact",
) -> Strategy:
    """D2F (arXiv 2508.09192): several blocks in flight over a block-causal mask, whose cache is
    exact; made for its distilled student.

    block_add_threshold: open the next block when the last is filled this far, 0 to 1
    decoded_token_threshold: a block must move, sure or not, when the one before is filled so far
    skip_threshold: commit every token more confident than this
    cache: exact reuses finished blocks, none recomputes them; the tokens are the same
    """
    rule, view = threshold_rule(skip_threshold, strict=True), block_causal(cache == "exact")
    schedule = pipeline(block_add_threshold, decoded_token_threshold)
    return Strategy(rule, view, schedule, eos="stop")
