"""Train the tiny model's autoregressive twin: `python -m lab.train ar`.

The same network, problems, steps and learning rates, but a causal mask, and the logits at a position predict the next one: the baseline that a
diffusion model has to beat. `--strategy ar` decodes it, one token a forward.

Letters: B examples, P prompt length, A answer length with its EOS, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dllm import block_mask
from lab.train import Batch, Job, Network, accuracy, begin, learning_rate, save, sft_loss
from model import LLaDA, Pass


@dataclass(frozen=True)
class Settings(Network):
    """The twin."""

    out: str = "weights/tiny-ar"
    run: str = "runs/tiny-ar"
    tails: float = 0.0  # decoding ends at the first EOS, and nothing behind it is ever looked at


def next_token_loss(model: LLaDA, batch: Batch) -> tuple[Tensor, Tensor]:
    """Predict every answer token from the tokens before it. Returns as the objectives in lab/train.py do."""
    P, A = batch.prompt.shape[1], batch.answer.shape[1]
    ids = torch.cat((batch.prompt, batch.answer[:, :-1]), 1)  # [B, P + A - 1]
    logits = model(ids, Pass(mask=block_mask(0, 1, 0, P + A - 1), rows=slice(P - 1, P + A - 1)), start=batch.start)  # [B, A, V]
    every = torch.ones_like(batch.answer, dtype=torch.bool)
    return sft_loss(logits, batch, every, 1.0), accuracy(logits, batch.answer, every)


def loss(s: Settings, step: int, model: LLaDA, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    return next_token_loss(model, batch)


def label(s: Settings, step: int) -> str:
    return "next token"


JOB = Job(Settings, begin, loss, learning_rate, label, partial(save, "ar"))  # which every process is sent: no lambda can be
