"""A few static shapes: what the arguments of a compiled forward are padded to (compiled.py).

Padding repeats the last position of the query, which writes the same keys and values once more, and
the last row of the batch; both are cut off the logits. So nothing has to be hidden but the slots
behind the canvas.

Letters: as in model.py; a padded size is written with a p, as in Bp, Qp.
"""

from functools import partial

import torch
from torch import Tensor

from model import Cache, LLaDA, Pass

SLOTS = 64  # a cache has a multiple of so many: prompts of about the same length share programs
FEW = 16  # positions, if more than one, are padded to no less: so few cost hardly more than one
FREE = 300  # rows that a GPU computes while it reads the weights: there padding costs nothing


def size(n: int) -> int:
    """What n rows are padded to, the next of 1, 2, 3, 4, 6, 8, 12, 16, ...: less than a third."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power


def positions(n: int, free: int = 0) -> int:
    """The same of positions, which cost more: 1, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160,
    ...: above 32 less than a fifth is padding. While they are free: 1, 32, 64, 128, 256."""
    power = 1 << (n - 1).bit_length()
    step = max(32, power) if max(32, power) <= free else max(8, power // 8)
    return 1 if n == 1 else max(FEW, -(-n // step) * step)


def memory_of(batch: int, slots: int) -> tuple[int, int]:
    """Rows and slots of a cache for so many."""
    return size(batch), -(-slots // SLOTS) * SLOTS


def spread(n: int, to: int, device) -> Tensor:
    """Of n things all, then the last again and again, int64 [to]."""
    return torch.arange(to if n else 0, device=device).clamp(max=n - 1)


class Padded(Cache):
    """A cache of a few sizes. The slots behind the canvas are nobody's."""

    def __init__(self, model: LLaDA, batch: int, slots: int):
        vars(self).update(vars(model.new_cache(*memory_of(batch, slots))))

    def pick(self, batch: Tensor) -> Cache:
        rows = batch[spread(len(batch), size(len(batch)), batch.device)]
        # with the strides of a new one, as programs expect them
        return self.each(lambda tensor: tensor.transpose(0, 1)[rows].transpose(0, 1))


def padded(model: LLaDA, B: int, Q: int, slots: int | None, at: Pass) -> tuple:
    """Which line and place of the ids stands at each of the padded, int64 [Bp] and [Qp], what these
    compute, and how many have logits. slots: those of the cache, if there is one"""
    device, Bp = model.device, size(B)
    room = partial(positions, free=FREE // Bp if device.type != "cpu" else 0)
    Qp = min(room(Q), slots or room(Q))
    lines, places = spread(B, Bp, device), spread(Q, Qp, device)
    query = model.indices(slice(0, Q) if at.query is None else at.query)[places]  # [Qp]
    wanted = model.indices(slice(0, Q))[at.rows]  # [R]
    rows = wanted[spread(len(wanted), room(len(wanted)), device)]  # [Rp]
    mask = torch.ones(Q, 1, dtype=torch.bool, device=device) if at.mask is None else at.mask
    mask = mask[lines] if mask.dim() > 2 else mask
    allowed = mask.new_zeros(*mask.shape[:-2], Qp, slots or Qp)  # [Qp, K] or [Bp, 1, Qp, K]
    allowed[..., slice(0, Q) if at.visible is None else at.visible] = mask[..., places, :]
    visible = None if slots is None else slice(0, slots)
    at = at._replace(query=query, visible=visible, mask=allowed, rows=rows)
    return lines, places, at, len(wanted)


def alike(a: Pass, b: Pass) -> bool:
    """Whether both ask for the same: the same tensors, and slices from and to the same."""
    return all(x is y or type(x) is type(y) is slice and x == y for x, y in zip(a, b))
