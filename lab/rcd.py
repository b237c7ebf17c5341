"""Teach a model of blocks to read masks that say what was expected: `python -m lab.train rcd`.

Second stage of two: the model of the first, frozen, is the reference. It reads the noisy blocks as
they are, and what it expects in a mask's place is mixed into that mask for the model that learns.
So nothing is unrolled: a step costs a forward more than the same step without it, which is the
control (`python -m lab.train blocks --growing 0`). The switches are those of lab/blocks.py.

Paper: RCD (arXiv 2601.22954). Letters: B examples, Q tokens read, R rows, C width, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lab import blocks
from model import LLaDA, Pass
from strategies import Count, Share, require
from strategies.rcd import residual


class Mixed(nn.Module):
    """A model that reads masks into which is mixed what another one expects there."""

    def __init__(self, target: LLaDA, reference: LLaDA, block: int):
        super().__init__()
        self.target, self.reference, self.block = target, reference, block
        self.config = target.config

    def forward(self, ids: Tensor, at: Pass, start: Tensor | None = None) -> Tensor:
        return self.target(ids, at, start=start, added=self.added(ids, at, start))

    def added(self, ids: Tensor, at: Pass, start: Tensor | None) -> Tensor:
        """What is mixed in, [B, Q, C]: nothing into a block that is all masks, as decoding has not
        read it yet. The R rows of a pass predict its last R tokens, in whole blocks."""
        mask = self.config.mask_token_id
        with torch.no_grad():
            told = self.reference(ids, at, start=start)  # [B, R, V]
        told[..., mask] = -torch.inf
        masked = (ids[:, -told.shape[1] :] == mask).unflatten(1, (-1, self.block))
        begun = masked & ~masked.all(-1, keepdim=True)  # [B, R / block, block]
        wte = self.target.wte
        mixed = residual(told, wte.weight, wte(torch.tensor(mask))) * begun.flatten(1)[..., None]
        return F.pad(mixed, (0, 0, ids.shape[1] - mixed.shape[1], 0))


@dataclass(frozen=True)
class Settings(blocks.Settings):
    """What a model of blocks becomes; by default all of its weights are trained."""

    out: str = "runs/tiny-rcd/weights"
    run: str = "runs/tiny-rcd"
    steps: Count = 150
    adam: Share = 3e-4
    adapter: str | None = "weights/tiny-nbdiff"
    rank: blocks.Rank = 0
    growing: Share = 0.0

    def __post_init__(self):
        super().__post_init__()
        require(self.growing == 0, "growing", self.growing, "0: blocks are what they were before")
        another = Path(self.start).resolve() != Path(Settings.start).resolve()
        if another and self.adapter == Settings.adapter:
            made = f"adapter {self.adapter} is of {Settings.start}"
            raise ValueError(f"{made}: give another, or none")

    def begin(self) -> tuple[Mixed, list[Optimizer]]:
        target, optimizers = super().begin()
        return Mixed(target, self.started(), self.block), optimizers

    def save(self, both: Mixed) -> None:
        super().save(both.target)
