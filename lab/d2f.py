"""Teach a model to decode under D2F's block-causal mask: `python -m lab.train d2f`.

The teacher reads the whole canvas in both directions, the student only its own block and what lies
before it; the student's LoRA weights learn to say what the teacher says about the same masked cells
(asymmetric distillation). Later blocks are masked more than earlier ones, as a pipeline finds them.

Left out on purpose: dropout; the paper's reverse KL, since its authors' code distils forward, too.
Paper: D2F (arXiv 2508.09192); LoRA (2106.09685).

Letters: B examples, P prompt length, A answer length with its EOS, K its blocks, V vocabulary.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lab.save import save_adapter
from lab.train import Batch, Run, check_tokens
from load_weights import load_config, load_model
from model import LLaDA, Pass
from strategies import Count, Share, require
from strategies.d2f import block_mask

TARGETS = ("q_proj", "k_proj", "v_proj", "attn_out")


class LoRA(nn.Module):
    """A frozen matrix plus scale * B A. B starts at zero: training starts from the teacher."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        width_out, width_in = base.weight.shape
        self.base, self.scale, bound = base, alpha / rank, width_in**-0.5
        a = torch.empty(rank, width_in).uniform_(-bound, bound, generator=generator)
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(torch.zeros(width_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def adapt(model: LLaDA, targets, rank: int, alpha: float, generator) -> list[nn.Parameter]:
    """Give these matrices of every layer their LoRA; returns what is to be trained."""
    for block in model.blocks:
        for name in targets:
            setattr(block, name, LoRA(getattr(block, name), rank, alpha, generator))
    return [p for p in model.parameters() if p.requires_grad]


def halves(model: LLaDA) -> dict[str, tuple[Tensor, Tensor]]:
    """What save_adapter writes."""
    named = model.named_modules()
    return {name: (m.lora_A, m.lora_B) for name, m in named if isinstance(m, LoRA)}


@dataclass(frozen=True)
class Settings(Run):
    """The adapter.

    teacher: folder of the model to adapt
    rank: of the LoRA matrices
    alpha: of LoRA; what it adds is scaled by alpha / rank
    block: tokens a block
    least: smallest masking ratio of a first block
    most: largest of a last block; 0.7 in the paper, though every block of a decode starts at 1
    """

    out: str = "runs/tiny-d2f/weights"
    run: str = "runs/tiny-d2f"
    steps: Count = 250
    batch: Annotated[int, (1, 2**20)] = 48
    adam: Share = 2e-3
    warmup: Count = 20
    polish: Share = 1.0
    teacher: str = "weights/tiny"
    rank: Annotated[int, (1, 2**14)] = 32
    alpha: Annotated[float, (0, 2**20)] = 32.0
    block: Count = 32
    least: Share = 0.2
    most: Share = 0.7

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.most <= 1, "most", self.most, "more than 0 and at most 1")
        between = f"more than 0 and at most {self.most} (most)"
        require(0 < self.least <= self.most, "least", self.least, between)
        load_config(self.teacher)

    def check(self) -> None:
        check_tokens("teacher", self.teacher)

    def begin(self) -> tuple[nn.ModuleDict, list[Optimizer]]:
        teacher, student = (load_model(self.teacher, None, "cpu", torch.float32) for _ in range(2))
        generator = torch.Generator().manual_seed(self.seed)
        adapter = adapt(student, TARGETS, self.rank, self.alpha, generator)
        optimizer = AdamW(adapter, lr=self.adam, betas=(0.9, 0.95), weight_decay=0.0)
        return nn.ModuleDict({"student": student, "teacher": teacher}), [optimizer]

    def loss(self, step: int, both: nn.ModuleDict, batch: Batch, rng) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy with the teacher, by 1 / ratio; right is where both agree."""
        (B, P), A = batch.prompt.shape, batch.answer.shape[1]
        ratio = mask_ratios(B, -(-A // self.block), self.least, self.most, rng)
        ratio = ratio.repeat_interleave(self.block, 1)[:, :A]
        masked = torch.rand(B, A, generator=rng) < ratio
        noisy = batch.answer.masked_fill(masked, both.student.config.mask_token_id)
        ids, rows = torch.cat((batch.prompt, noisy), 1), slice(P, P + A)  # ids [B, P + A]
        at = Pass(mask=block_mask(P, self.block, 0, P + A), rows=rows)
        with torch.no_grad():
            told = both.teacher(ids, Pass(rows=rows), start=batch.start)  # [B, A, V]
        said = both.student(ids, at, start=batch.start)
        told, said = (logits.float().log_softmax(-1) for logits in (told, said))
        distance = -(told.exp() * said).sum(-1)  # [B, A]
        agreeing = ((told.argmax(-1) == said.argmax(-1)) & masked).sum()
        mean = (distance * masked / ratio).sum() / masked.sum().clamp(min=1)
        return mean * B, torch.stack((masked.sum(), agreeing))

    def rate(self, step: int) -> float:
        """As a share of the peak: up over the warm-up, then linearly down to 0."""
        return min((step + 1) / self.warmup, (self.steps - step) / self.steps)

    def save(self, both: nn.ModuleDict) -> None:
        save_adapter(halves(both.student), self.alpha, self.out)


def mask_ratios(B: int, K: int, least: float, most: float, rng: torch.Generator) -> Tensor:
    """A masking ratio for each block, float32 [B, K], growing from block to block.

    The first is uniform in least .. most, each next one larger by a random step, never above most.
    The last is expected halfway between the first and `most`, as in the authors' code.
    """
    first = least + (most - least) * torch.rand(B, 1, generator=rng)
    growth = torch.rand(B, K - 1, generator=rng) * (most - first) / max(1, K - 1)
    return torch.cat((first, growth), 1).cumsum(1)
