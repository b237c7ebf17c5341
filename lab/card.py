"""Teach a causal model to write masks behind its text: `python -m lab.train card`.

One stream, causal throughout, the next token predicted in every row: what a model of the next token
is trained with, but for masks in the input, most of them at its end. So a pass costs a third of the
rows that a clean answer and two noisy copies do (lab/blocks.py).

Paper: CARD (arXiv 2601.22031), of which no code and only descriptions were to be had.

Letters: B examples, P prompt length, A answer length in whole blocks, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lab.blocks import Adaptation, Length, in_whole_blocks
from lab.train import Batch, score
from model import LLaDA, Pass
from strategies import Share, require
from strategies.d2f import block_mask


@dataclass(frozen=True)
class Settings(Adaptation):
    """A causal model that writes masks.

    block: tokens a block
    wide: the masks lie among so many times their number of tokens, at the end of the answer; a
        large number is all over
    fading: share of what the masks before a token count for that the next token forgets
    """

    out: str = "runs/tiny-card/weights"
    run: str = "runs/tiny-card"
    block: Length = 8
    wide: float = 1.5
    fading: Share = 0.5

    def __post_init__(self):
        super().__post_init__()
        require(self.wide >= 1, "wide", self.wide, "at least 1: masks need room")

    def loss(self, step: int, model: LLaDA, batch: Batch, rng) -> tuple[Tensor, Tensor]:
        """The cross-entropy of the next token in every row, which counts for less the more masks
        stand before it."""
        batch = in_whole_blocks(batch, self.block, model.config.eos_token_id)
        (B, P), A = batch.prompt.shape, batch.answer.shape[1]
        masked = soft_tail((batch.weight > 0).sum(1), A, self.wide, rng)
        noisy = batch.answer.masked_fill(masked, model.config.mask_token_id)
        ids = torch.cat((batch.prompt, noisy), 1)[:, :-1]  # [B, P + A - 1]
        at = Pass(mask=block_mask(0, 1, 0, P + A - 1), rows=slice(P - 1, P + A - 1))
        logits = model(ids, at, start=batch.start)  # [B, A, V]
        before = torch.cat((torch.zeros(B, 1, dtype=torch.bool), masked[:, :-1]), 1)
        weighed = replace(batch, weight=batch.weight * trust(before, self.fading))
        loss, _ = score(logits, weighed, torch.ones_like(masked), 1.0)
        return loss, score(logits, batch, masked & (batch.weight > 0), 1.0)[1]


def soft_tail(length: Tensor, A: int, wide: float, rng: torch.Generator) -> Tensor:
    """Masks for answers of such lengths, int64 [B], bool [B, A]: N of them, a share drawn for each,
    at random places among the last wide * N tokens."""
    count = (length * torch.rand(len(length), generator=rng)).long().clamp(min=1)[:, None]  # [B, 1]
    room = (wide * count).long().minimum(length[:, None])
    place, draw = torch.arange(A), torch.rand(len(length), A, generator=rng)
    inside = (place < length[:, None]) & (place >= length[:, None] - room)
    return draw.masked_fill(~inside, 2).argsort(-1).argsort(-1) < count


def trust(masked: Tensor, fading: float) -> Tensor:
    """What a row counts for, by the masks up to it, bool [B, A]: 1 / (1 + S), where S grows by one
    with each mask, by two if it follows another, and fades with each token."""
    seen, weights, last = torch.zeros(len(masked)), [], torch.zeros(len(masked))
    for now in masked.float().unbind(1):
        seen = now * (1 + last) + (1 - fading) * seen
        weights.append(1 / (1 + seen))
        last = now
    return torch.stack(weights, 1)
