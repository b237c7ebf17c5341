"""Teach a model to prefer an answer to one that repeats itself: `python -m lab.train r2ft`.

Part of an answer is masked. What stood there is good; bad is a phrase from its edge, copied until
the place is full. Both are read from the same logits, so a pass costs no more than that of the
masked loss, and the model learns which of the two is likelier, not what to write.

Left out on purpose: the reference model, which is none in the authors' code either.
Paper: R2FT (in arXiv 2509.15188).

Letters: B examples, P prompt length, A answer length in whole blocks, V vocabulary.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.blocks import Adaptation, Length, Rank, in_whole_blocks, streams
from lab.train import Batch
from model import LLaDA
from strategies import Count, Share
from strategies.blocks import Context

PHRASE = 14  # tokens of what is repeated, at most


@dataclass(frozen=True)
class Tuning(Adaptation):
    """What a model of blocks becomes; by default all of its weights are trained.

    block: tokens a block
    context: what finished tokens see, as the model was trained (lab/blocks.py)
    shift: 1 if the logits of a token stand a slot before it, as those of `start` do
    """

    steps: Count = 30
    adam: Share = 1e-4
    rank: Rank = 0
    block: Length = 8
    context: Context = "causal"
    shift: Annotated[int, (0, 1)] = 1

    def read(self, model: LLaDA, batch: Batch, masks: list[Tensor]) -> list[Tensor]:
        """The log-probabilities [B, A, V] in each of the copies of an answer, masked as bool [B, A]
        says, where a block sees itself and what is clean before it."""
        P, A = batch.prompt.shape[1], batch.answer.shape[1]
        noisy = [batch.answer.masked_fill(mask, model.config.mask_token_id) for mask in masks]
        at = streams(P, A, self.block, self.context, self.shift, len(masks))
        ids = torch.cat((batch.prompt, batch.answer, *noisy), 1)
        logits = model(ids, at._replace(rows=at.rows[A:]), start=batch.start)
        return list(logits.float().log_softmax(-1).split(A, 1))


@dataclass(frozen=True)
class Settings(Tuning):
    """A model that repeats itself less.

    margin: by how much the good text has to be likelier, in nats a token
    anchor: weight of the plain loss of the good text
    """

    out: str = "runs/tiny-r2ft/weights"
    run: str = "runs/tiny-r2ft"
    margin: float = 0.0
    anchor: float = 0.1

    def loss(self, step: int, model: LLaDA, batch: Batch, rng) -> tuple[Tensor, Tensor]:
        """Over the tokens in which good and bad may differ; and how many the model prefers."""
        own = (batch.answer != model.config.eos_token_id).sum(1)  # [B]
        batch = in_whole_blocks(batch, self.block, model.config.eos_token_id)
        masked, bad = repeated(batch.answer, own, rng)
        (seen,) = self.read(model, batch, [masked])
        of = lambda text: seen.gather(-1, text[..., None])[..., 0] * masked  # [B, A]
        good, bad = of(batch.answer), of(bad)
        n = masked.sum(1).clamp(min=1)
        loss = preference(good.sum(1) / n, bad.sum(1) / n, self.margin, self.anchor)
        return loss.sum(), torch.stack((masked.sum(), ((good > bad) & masked).sum()))


def preference(good: Tensor, bad: Tensor, margin: float, anchor: float) -> Tensor:
    """-log sigmoid(good - bad - margin) - anchor * good, of log-probabilities a token."""
    return -F.logsigmoid(good - bad - margin) - anchor * good


def repeated(answer: Tensor, own: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of the first `own` tokens are masked, bool [B, A], and what else might stand there:
    the phrase before the masks again and again, or behind them where none is before."""
    masked, bad = torch.zeros_like(answer, dtype=torch.bool), answer.clone()
    draw = lambda low, high: int(torch.randint(low, high, (), generator=rng))
    for row, length in enumerate(own.tolist()):
        if length < 2:
            continue
        a = draw(0, length - 1)
        b = draw(a + 1, length if a == 0 else length + 1)
        most = draw(1, 1 + min(PHRASE, b - a))  # so that it stands there once at least
        phrase = answer[row, max(0, a - most) : a] if a else answer[row, b : min(length, b + most)]
        masked[row, a:b] = True
        bad[row, a:b] = phrase.repeat(-(-(b - a) // len(phrase)))[: b - a]
    return masked, bad


def repeats(ids: list[int]) -> bool:
    """Does a phrase of at most PHRASE tokens stand twice side by side?"""
    return any(
        ids[at - n : at] == ids[at : at + n]
        for n in range(1, PHRASE + 1)
        for at in range(n, len(ids) - n + 1)
    )
