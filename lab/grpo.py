"""Teach a model by what its own answers earn, coupled-GRPO: `python -m lab.train grpo`.

Each problem is answered several times by sampling; an answer earns one if it is the right one, else
nothing. Answers that earned more than the others of their group are made likelier, the rest less.
How likely an answer is costs a diffusion model three readings of it: all masked, masked at random,
and masked where the second is not; so each token is scored once all masked and once by the pair.

Left out on purpose: a second update with the same answers, and with it the clipped ratio, and the
distance to a reference. Paper: DiffuCoder (arXiv 2506.20639).

Letters: B problems, N answers, P prompt length, A answer length in whole blocks, V vocabulary.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dllm import generate
from lab.blocks import in_whole_blocks
from lab.r2ft import Tuning
from lab.train import Batch, trained
from model import LLaDA
from strategies import Count, Share, require
from strategies.blocks import blocks_of, in_blocks


@dataclass(frozen=True)
class Settings(Tuning):
    """A model that earns more.

    group: answers to each problem
    temperature: of sampling them
    threshold: tokens that are surer are written together
    gen_length: tokens of an answer
    """

    out: str = "runs/tiny-grpo/weights"
    run: str = "runs/tiny-grpo"
    steps: Count = 60
    batch: Annotated[int, (1, 2**20)] = 8
    adam: Share = 2e-5  # fifteen times as much unlearns the form of an answer
    group: Annotated[int, (2, 1024)] = 6
    temperature: float = 1.0
    threshold: Share = 0.9
    gen_length: Count = 64

    def __post_init__(self):
        super().__post_init__()
        require(self.temperature > 0, "temperature", self.temperature, "more than 0: all differ")
        whole = f"a multiple of block, {self.block}"
        require(self.gen_length % self.block == 0, "gen_length", self.gen_length, whole)

    def loss(self, step: int, model: LLaDA, batch: Batch, rng) -> tuple[Tensor, Tensor]:
        """Summed over the problems; and how many answers there were, and how many were right.
        Groups of equal rewards teach nothing, and are not read."""
        answers, length, earned = self.sample(model, batch, rng)
        worth, of = advantages(earned).flatten(), torch.arange(len(length)) // self.group
        keep, counts = worth != 0, torch.tensor([earned.numel(), int(earned.sum())])
        if not keep.any():
            return 0.0 * sum(p.sum() for p in trained(model).values()), counts
        of, length = of[keep], length[keep, None]
        mine = Batch(batch.prompt[of], batch.start[of], answers[keep], batch.weight[of])
        mine = in_whole_blocks(mine, self.block, model.config.eos_token_id)
        ratio = torch.rand(len(of), 1, generator=rng) * 0.6 + 0.2  # [N, 1]
        place = torch.arange(mine.answer.shape[1])
        one = torch.rand(mine.answer.shape, generator=rng) < ratio
        masks = [torch.ones_like(one), one, ~one]
        seen = self.read(model, mine, masks)
        each = [view.gather(-1, mine.answer[..., None])[..., 0] for view in seen]  # [N, A]
        likely = coupled(*each, one, ratio)
        written = (place <= length) & (place < self.gen_length)  # the first EOS, too
        step = (likely - likely.detach()).exp() * worth[keep, None] * written / written.sum(1, True)
        return -step.sum() / self.group, counts

    def sample(self, model: LLaDA, batch: Batch, rng) -> tuple[Tensor, Tensor, Tensor]:
        """Answers with EOS behind them, int64 [N, gen_length], their lengths, int64 [N], and what
        they earned, float32 [B, group]."""
        own = {"shift": self.shift, "block_length": self.block}
        strategy = in_blocks(blocks_of(self.context), self.threshold, **own)
        prompts = [row[start:].tolist() for row, start in zip(batch.prompt, batch.start.tolist())]
        asked = [prompt for prompt in prompts for _ in range(self.group)]
        own = {"gen_length": self.gen_length, "temperature": self.temperature}
        own["seed"] = int(torch.randint(2**31, (), generator=rng))
        with torch.autocast("cpu", enabled=False):
            result = generate(model, asked, strategy, **own)
        length, eos = torch.tensor(result.lengths), model.config.eos_token_id
        answers = result.tokens[:, result.prompt_length :].clone()  # of no inference: to learn from
        answers[torch.arange(self.gen_length) >= length[:, None]] = eos
        right = [row[row != eos].tolist() for row in batch.answer]
        earned = [result.answer(row) == right[row // self.group] for row in range(len(asked))]
        return answers, length, torch.tensor(earned).float().view(-1, self.group)


def advantages(earned: Tensor) -> Tensor:
    """What each of a group, [B, group], earned beyond their mean, in standard deviations."""
    beyond = earned - earned.mean(1, keepdim=True)
    return beyond / (earned.std(1, keepdim=True) + 1e-4)


def coupled(of_all: Tensor, of_one: Tensor, of_other: Tensor, one: Tensor, ratio: Tensor) -> Tensor:
    """A token's log-probability, [N, A]: half of it all masked, half from that one of the two
    complementary readings in which it is a mask, divided by the share that is masked there."""
    return (of_all + torch.where(one, of_one / ratio, of_other / (1 - ratio))) / 2
