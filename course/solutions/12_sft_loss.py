"""A solution of exercise 12."""

import torch.nn.functional as F
from torch import Tensor


def corrupt(answer: Tensor, t: Tensor, draws: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    masked = draws < t[:, None]  # [B, A]
    return answer.masked_fill(masked, mask_id), masked


def sft_loss(logits: Tensor, answer: Tensor, masked: Tensor, t: Tensor) -> Tensor:
    flat = logits.flatten(0, 1), answer.flatten()
    entropy = F.cross_entropy(*flat, reduction="none").view_as(answer)  # [B, A]
    return (entropy * masked / t[:, None]).mean()
