"""A solution of exercise 9."""

import torch

from model import Pass
from strategies import Window


def pruned(at: Pass, window: Window, slots: int, window_size: int | None) -> Pass:
    if window_size is None or window.suffix <= window_size + 1:
        return at
    kept = torch.arange(window.end + window_size + 1)
    kept[-1] = slots - 1
    query = kept[(kept >= at.query.start) & (kept < at.query.stop)]
    return at._replace(query=query, visible=None if at.visible is None else kept)
