"""Teach a model to write at once what it wrote one by one: `python -m lab.train trajectory`.

The teacher, the same weights frozen, decodes each problem, one token a forward. The student is
shown a canvas that the teacher had on its way, and predicts all that is still masked in the open
block (pseudo-trajectory distillation): what a decode meets, where random masks ask for what none
ever does.

Left out on purpose: answers that the teacher got wrong. Paper: d3LLM (arXiv 2601.07568).

Letters: B examples, P prompt length, A gen_length, V vocabulary; lengths in tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from dllm import generate
from lab.blocks import Adaptation, Length, Rank
from lab.train import Batch, score, weigh
from model import LLaDA, Pass
from strategies import Count, Share, require


@dataclass(frozen=True)
class Settings(Adaptation):
    """A model that learns from its own decodes; by default all of its weights are trained.

    block: tokens a block, those that the teacher decodes in
    gen_length: tokens of the canvas; an answer that does not fit is not learned from
    shuffled: the control: as many masks, but anywhere in the block
    most: largest share of a block that is masked; the smallest grows up to it over the steps
    certain: weight of the entropy of what is predicted right
    """

    out: str = "runs/tiny-trajectory/weights"
    run: str = "runs/tiny-trajectory"
    steps: Count = 100
    adam: Share = 3e-4
    start: str = "weights/tiny"
    rank: Rank = 0
    block: Length = 32
    gen_length: Length = 64
    shuffled: bool = False
    most: Share = 0.8
    certain: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        whole = f"a multiple of block, {self.block}"
        require(self.gen_length % self.block == 0, "gen_length", self.gen_length, whole)
        require(0 < self.most <= 1, "most", self.most, "more than 0 and at most 1")

    def begin(self) -> tuple[nn.ModuleDict, list[Optimizer]]:
        student, optimizers = super().begin()
        return nn.ModuleDict({"student": student, "teacher": self.started()}), optimizers

    def loss(self, step: int, both: nn.ModuleDict, batch: Batch, rng) -> tuple[Tensor, Tensor]:
        """Over what the teacher had not written yet, and over the rest of the open block, which is
        masked in a second view; and the entropy, at half the temperature, of what is right."""
        batch, written = self.decoded(both.teacher, batch)
        (B, P), A, mask = batch.prompt.shape, self.gen_length, both.student.config.mask_token_id
        blocks = (batch.weight > 0).sum(1, keepdim=True) // self.block
        number = torch.arange(A) // self.block
        opened = (torch.rand(B, 1, generator=rng) * blocks).long()  # [B, 1]
        least = self.most * step / self.steps
        share = least + (self.most - least) * torch.rand(B, 1, generator=rng)
        when = torch.rand(B, A, generator=rng) if self.shuffled else written
        last = latest(when, number == opened, share)
        loss, counts = torch.zeros(()), torch.zeros(2)
        for view in (last, (number == opened) & ~last):
            noisy = batch.answer.masked_fill(view | (number > opened), mask)
            ids, at = torch.cat((batch.prompt, noisy), 1), Pass(rows=slice(P, P + A))
            logits = both.student(ids, at, start=batch.start)  # [B, A, V]
            own, count = score(logits, batch, view & (batch.weight > 0), 1.0)
            loss, counts = loss + own, counts + count
            if view is last:
                right = view & (logits.argmax(-1) == batch.answer)
                loss = loss + self.certain * (entropy(logits, 0.5) * batch.weight * right).sum()
        return loss / 4, counts

    def decoded(self, teacher: LLaDA, batch: Batch) -> tuple[Batch, Tensor]:
        """What the teacher writes, and in which forward, int64 [B, A]. An answer that is not the
        right one, or too long, has no weight, and none has a block that the decode did not open."""
        prompts = [row[start:].tolist() for row, start in zip(batch.prompt, batch.start.tolist())]
        A, eos = self.gen_length, teacher.config.eos_token_id
        one_by_one = {"strategy": "fast-dllm", "threshold": None, "eos": "stop"}
        with torch.autocast("cpu", enabled=False):
            result = generate(teacher, prompts, **one_by_one, gen_length=A, block_length=self.block)
        # copies: what was made in inference mode is nothing to learn from
        tokens, written = (t[:, -A:].clone() for t in (result.tokens, result.written))
        right = F.pad(batch.answer, (0, A), value=eos)[:, :A] == tokens
        own = (batch.answer != eos).sum(1, keepdim=True) + 1  # [B, 1]
        fits = (batch.answer[:, A:] == eos).all(1, keepdim=True)
        learned = fits & right.all(1, keepdim=True) & (written > 0)
        weight = weigh(own.clamp(max=A), A) * learned
        return Batch(batch.prompt, batch.start, tokens, weight), written

    def save(self, both: nn.ModuleDict) -> None:
        super().save(both.student)


def latest(when: Tensor, inside: Tensor, share: Tensor) -> Tensor:
    """Of the tokens inside, bool [B, A], those with the largest `when`: such a share of them, float
    [B, 1], rounded down, but one at least."""
    count = (share * inside.sum(1, keepdim=True)).long().clamp(min=1)
    return inside & (when.masked_fill(~inside, -1).argsort(1, True).argsort(1) < count)


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """In nats, of the distribution at this temperature: [..., V] -> [...]."""
    log_p = (logits.float() / temperature).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)  # subtle: the gradient of entr is NaN where p is 0
