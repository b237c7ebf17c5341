"""A solution of exercise 11."""

import torch
from torch import Tensor


def before(masked: Tensor) -> Tensor:
    """How far the predecessor of each block is filled, and the last block, float [b, n + 1]."""
    filled = (~masked).float().mean(-1)  # [b, n]
    return torch.cat((torch.ones(len(masked), 1), filled), 1)


def may_open(masked: Tensor, opened: Tensor, ended: Tensor, add: float) -> Tensor:
    last = before(masked).gather(1, opened[:, None])[:, 0]  # [b]
    return (opened < masked.shape[1]) & ~ended & (last >= add)


def must_move(masked: Tensor, act: float) -> Tensor:
    return before(masked)[:, :-1] >= act
