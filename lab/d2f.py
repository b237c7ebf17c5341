"""Teach a model to decode under D2F's block-causal mask: `python -m lab.train d2f`.

The teacher reads the whole canvas in both directions, the student only its own block and what lies before it; the student's LoRA weights
learn to say what the teacher says about the same masked cells (asymmetric distillation). Later blocks are masked more than earlier ones, as
a pipeline finds them.

Left out on purpose: dropout. Paper: D2F (arXiv 2508.09192); LoRA (2106.09685).

Letters: B examples, P prompt length, A answer length with its EOS, K blocks of an answer, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm import block_mask
from lab.save import save_adapter
from lab.train import Job, Run
from load_weights import load_config, load_model
from model import LLaDA, Pass
from options import require

TARGETS = ("q_proj", "k_proj", "v_proj", "attn_out")


@dataclass(frozen=True)
class Settings(Run):
    """The adapter.

    teacher: folder of the model to adapt
    rank: of the LoRA matrices
    alpha: of LoRA; what it adds is scaled by alpha / rank
    block: tokens a block
    least: smallest masking ratio of a first block
    most: largest masking ratio of a last block; 0.7 in the paper, though every block of a decode starts at 1
    loss: code distils forward, as the authors' code does: cross-entropy with the teacher's distribution; paper is the paper's reverse KL
    """

    out: str = "weights/tiny-d2f"
    run: str = "runs/tiny-d2f"
    steps: int = 250
    batch: int = 48
    adam: float = 2e-3
    warmup: int = 20
    polish: float = 1.0
    teacher: str = "weights/tiny"
    rank: int = 32
    alpha: float = 32.0
    block: int = 32
    least: float = 0.2
    most: float = 0.7
    loss: Literal["code", "paper"] = "code"

    def __post_init__(self):
        super().__post_init__()
        for name in ("rank", "block"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.alpha >= 0, "alpha", self.alpha, "0 or more")
        require(0 < self.most <= 1, "most", self.most, "more than 0 and at most 1")
        require(0 < self.least <= self.most, "least", self.least, f"more than 0 and at most {self.most} (most)")
        load_config(self.teacher)


class LoRA(nn.Module):
    """A frozen matrix plus scale * B A. B starts at zero, so that training starts from the teacher."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        width_out, width_in = base.weight.shape
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        bound = width_in**-0.5
        self.lora_A = nn.Parameter(torch.empty(rank, width_in).uniform_(-bound, bound, generator=generator))
        self.lora_B = nn.Parameter(torch.zeros(width_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


class Student(nn.Module):
    """The adapted model, with its teacher beside it."""

    def __init__(self, s: Settings):
        super().__init__()
        self.teacher = load_model(s.teacher, device="cpu", dtype=torch.float32)
        self.model = load_model(s.teacher, device="cpu", dtype=torch.float32)
        generator = torch.Generator().manual_seed(s.seed)
        for block in self.model.blocks:
            for name in TARGETS:
                setattr(block, name, LoRA(getattr(block, name), s.rank, s.alpha, generator))

    def halves(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{module: (A, B)}, as save_adapter takes them."""
        return {name: (m.lora_A, m.lora_B) for name, m in self.model.named_modules() if isinstance(m, LoRA)}


def mask_ratios(B: int, K: int, least: float, most: float, rng: torch.Generator) -> Tensor:
    """A masking ratio for each block, float32 [B, K]: the first uniform in least .. most, each next one larger by a random step, never above most.

    The expected last ratio lies halfway between the first and `most`, as in the authors' code.
    """
    first = least + (most - least) * torch.rand(B, 1, generator=rng)
    growth = torch.rand(B, K - 1, generator=rng) * (most - first) / max(1, K - 1)
    return torch.cat((first, growth), 1).cumsum(1)


def distillation_loss(student: LLaDA, teacher: LLaDA, batch, s: Settings, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sum over examples of the distance between the two, weighed by 1 / ratio and averaged over masked cells; and [masked, agreeing] counts."""
    (B, P), A = batch.prompt.shape, batch.answer.shape[1]
    ratio = mask_ratios(B, -(-A // s.block), s.least, s.most, rng).repeat_interleave(s.block, 1)[:, :A]
    masked = torch.rand(B, A, generator=rng) < ratio
    ids = torch.cat((batch.prompt, batch.answer.masked_fill(masked, student.config.mask_token_id)), 1)  # [B, P + A]
    rows = slice(P, P + A)
    with torch.no_grad():
        told = teacher(ids, Pass(rows=rows), start=batch.start).float().log_softmax(-1)  # [B, A, V]
    said = student(ids, Pass(mask=block_mask(P, s.block, 0, P + A), rows=rows), start=batch.start).float().log_softmax(-1)
    distance = -(told.exp() * said).sum(-1) if s.loss == "code" else (said.exp() * (said - told)).sum(-1)  # [B, A]
    agreeing = ((told.argmax(-1) == said.argmax(-1)) & masked).sum()
    return (distance * masked / ratio).sum() / masked.sum().clamp(min=1) * B, torch.stack((masked.sum(), agreeing))


# ---- The job of lab.train


def begin(s: Settings, tokenizer) -> tuple[Student, list[torch.optim.Optimizer]]:
    student = Student(s)
    adapter = [p for p in student.parameters() if p.requires_grad]
    return student, [torch.optim.AdamW(adapter, lr=s.adam, betas=(0.9, 0.95), weight_decay=0.0)]


def loss(s: Settings, step: int, student: Student, batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    return distillation_loss(student.model, student.teacher, batch, s, rng)


def rate(s: Settings, step: int) -> float:
    """As a share of the peak: up over the warm-up, then linearly down to 0."""
    return min((step + 1) / s.warmup, (s.steps - step) / s.steps)


def save(s: Settings, student: Student) -> list[str]:
    save_adapter(student.halves(), s.alpha, s.out)
    return ["--model", s.teacher, "--adapter", s.out, "--strategies", "d2f"]


def label(s: Settings, step: int) -> str:
    return f"masked {s.least:g} to {s.most:g}"


JOB = Job(Settings, begin, loss, rate, label, save)
