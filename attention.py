"""Which kernel attends: on a GPU chosen by name, and looked at once for each padded shape.

PyTorch chooses for itself, and on some GPUs has chosen a kernel that was wrong for shapes like
ours: a few rows, many slots, a mask. Left out on purpose: a kernel of our own, and a choice on a
CPU, which has one, and where it is the definition that the others must equal.

Letters: B batch, H heads, G key/value heads, Q rows, K slots, D head width.
"""

import functools
import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# in this order, the last for all that the others cannot do; flash attention knows no masks
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# of a row's length, by what may be left of the exact result
ERROR = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.04}


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, H, Q, D], k and v [B, G, K, D], mask bool [.., Q, K] -> [B, H, Q, D]."""
    grouped = q.shape[1] != k.shape[1]
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=grouped)
    if grouped and mask is not None:  # or it would be the last of the kernels: 2 to 5 times as long
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        grouped = False
    with sdpa_kernel(KERNELS if mask is None else MASKED, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=grouped)


def error(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> float:
    """The largest distance of a row of `attend` from the exact one, over the latter's length."""
    worst = torch.zeros((), device=q.device, dtype=torch.float64)
    for ours, *row in zip(attend(q, k, v, mask), q, k, v, mask.expand(len(q), 1, *mask.shape[-2:])):
        exact_q, exact_k, exact_v = (t.double() for t in row[:3])
        exact_k, exact_v = (
            t.repeat_interleave(q.shape[1] // k.shape[1], dim=0) for t in (exact_k, exact_v)
        )
        odds = exact_q @ exact_k.mT * q.shape[-1] ** -0.5  # [H, Q, K]
        exact = odds.masked_fill(~row[3], -torch.inf).softmax(-1) @ exact_v
        far = (ours.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
        worst = worst.maximum(far.nan_to_num(torch.inf).max())
    return worst.item()


@functools.cache
def measured(shape: tuple, heads: tuple[int, int, int], dtype: torch.dtype, device) -> None:
    """Try the kernel for masks on numbers of these shapes, and go on to the next, for good and
    after one line, if it is wrong. heads: H, G, D"""
    (B, Q, K), (H, G, D) = (shape[0], *shape[-2:]), heads
    draw = torch.Generator(device).manual_seed(0)
    numbers = lambda *shape: torch.empty(shape, device=device).normal_(generator=draw).to(dtype)
    mask = numbers(*shape[1:]) > 0
    mask[..., 0] = True  # no row sees nothing
    given = numbers(B, H, Q, D), numbers(B, G, K, D), numbers(B, G, K, D), mask
    while len(MASKED) > 1 and not (far := error(*given)) <= ERROR[dtype]:
        wrong = f"{MASKED.pop(0).name} is off by {far:.1g} of its result"
        print(f"attention of {Q} x {K}: {wrong}, using {MASKED[0].name}", file=sys.stderr)


def settle(model, batch: int, mask: Tensor) -> None:
    """See to it, once for each shape of a mask [.., Q, K], that the kernel for it is right."""
    if mask.device.type != "cpu":
        block = model.blocks[0]
        heads = block.heads, block.kv_heads, block.head_width
        measured((batch, *mask.shape), heads, model.dtype, mask.device)
