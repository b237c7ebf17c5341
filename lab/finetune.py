"""Go on with LLaDA's objective from finished weights: `python -m lab.train finetune`.

With `--eos-masked` it is dLLM-Var's: every EOS is a mask in every example, and predicted, so that
where an answer ends is learned however much of it is written. Without, it is the control.

Left out on purpose: packing of several dialogues into one text, which see each other there.
Papers: LLaDA (arXiv 2502.09992), dLLM-Var (2510.24605).
"""

from dataclasses import dataclass

from torch import Tensor

from lab.blocks import Adaptation, Rank
from lab.train import Batch, diffusion_loss
from model import LLaDA
from strategies import Count, Share, require


@dataclass(frozen=True)
class Settings(Adaptation):
    """A model that reads the whole canvas; by default all of its weights are trained.

    eos_masked: every EOS is a mask, and predicted, in each example
    least: smallest masking ratio
    """

    out: str = "runs/tiny-finetune/weights"
    run: str = "runs/tiny-finetune"
    steps: Count = 100
    adam: Share = 3e-4
    start: str = "weights/tiny"
    rank: Rank = 0
    eos_masked: bool = False
    least: Share = 0.1

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.least <= 1, "least", self.least, "more than 0 and at most 1")

    def loss(self, step: int, model: LLaDA, batch: Batch, rng) -> tuple[Tensor, Tensor]:
        return diffusion_loss(model, batch, self.least, False, rng, self.eos_masked)
