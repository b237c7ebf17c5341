"""Train the tiny model's autoregressive twin: `python -m lab.train ar`.

The same network, problems, steps and learning rates, but a causal mask, and the logits at a
position predict the next one: the baseline that a diffusion model has to beat. `--strategy ar`
decodes it, one token a forward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.train import Batch, Network, score
from model import LLaDA, Pass
from strategies import Share
from strategies.d2f import block_mask


@dataclass(frozen=True)
class Settings(Network):
    """The twin."""

    out: str = "runs/tiny-ar/weights"
    run: str = "runs/tiny-ar"
    tails: Share = 0.0  # decoding ends at the first EOS, and nothing behind it is ever looked at

    def loss(self, step: int, model: LLaDA, batch: Batch, rng) -> tuple[Tensor, Tensor]:
        """Predict every answer token from the tokens before it."""
        P, A = batch.prompt.shape[1], batch.answer.shape[1]
        ids = torch.cat((batch.prompt, batch.answer[:, :-1]), 1)  # [B, P + A - 1]
        at = Pass(mask=block_mask(0, 1, 0, P + A - 1), rows=slice(P - 1, P + A - 1))
        every = torch.ones_like(batch.answer, dtype=torch.bool)
        return score(model(ids, at, start=batch.start), batch, every, 1.0)
