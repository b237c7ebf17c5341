"""Which exact attention kernel is the fastest for what a decoder asks: `python -m lab.bench attention`.

The query is a few positions, keys and values are views of a cache, and a position sees all slots (the eager step, which reads a slice of the
cache), the first three quarters of them (the compiled step, whose cache has spare slots behind the canvas), or its own block and those before
it (D2F). All kernels get the same tensors and take turns. A kernel that does not take them, or whose result is not that of float64 up to
rounding, has a dash.

Left out on purpose: kernels that come in packages of their own.

Letters: B batch, Q positions of the query, K slots, H heads, G key/value heads, D head width.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from compiled import many_programs
from dllm import block_mask
from lab.report import ran_on, table
from lab.speed import SHAPES, alternate, config_of, dtype_of, short, use, whole_numbers
from load_weights import check_memory, find_device
from model import Cache
from options import require

# Which of K slots the Q positions see, bool [Q, K]; None where nothing is hidden.
SEEN: dict[str, Callable[[int, int, torch.device], Tensor | None]] = {
    "all": lambda Q, K, device: None,
    "three quarters": lambda Q, K, device: (torch.arange(K, device=device) < K * 3 // 4).repeat(Q, 1),
    "block-causal": lambda Q, K, device: block_mask(K - Q, max(1, Q // 2), K - Q, K, device),
}
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Callable[[], Tensor]]  # (q, k, v, mask) -> what is timed


def sdpa(backend: SDPBackend | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Callable[[], Tensor]:
    """F.scaled_dot_product_attention, with one of its kernels or with that of its own choice."""

    def run() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])

    return run if backend is None else sdpa_kernel(backend)(run)


def explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Callable[[], Tensor]:
    """As it is written in a textbook: two products and a softmax between them."""

    def run() -> Tensor:
        keys, values = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        scores = (q * q.shape[-1] ** -0.5) @ keys.mT
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ values

    return run


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Callable[[], Tensor]:
    """FlexAttention, compiled for these shapes; which blocks of slots it may skip is worked out before it is timed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # 2 s, which no other command should wait for

    blocks = None
    if mask is not None:
        blocks = create_block_mask(lambda b, h, i, j: mask[i, j], None, None, *mask.shape, device=q.device)
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda: compiled(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])


KERNELS: dict[str, Kernel] = {
    "SDPA": partial(sdpa, None),
    "flash": partial(sdpa, SDPBackend.FLASH_ATTENTION),
    "efficient": partial(sdpa, SDPBackend.EFFICIENT_ATTENTION),
    "cuDNN": partial(sdpa, SDPBackend.CUDNN_ATTENTION),
    "math": partial(sdpa, SDPBackend.MATH),
    "explicit": explicit,
    "flex": flex,
}


def exact(call: Callable[[], Tensor], expected: Tensor) -> bool:
    """Does the call run at all, and is its result the expected one but for what its dtype cannot hold?"""
    try:
        found = call()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of many types: a kernel says in its own way what it does not take
        return False
    return bool((found.double() - expected).abs().max() <= 64 * torch.finfo(found.dtype).eps * expected.abs().max())


@torch.inference_mode()
def attention(args: argparse.Namespace) -> None:
    """The exact attention kernels side by side, for the queries, slots and masks of a decode."""
    device, dtype = find_device(args.device), dtype_of(args)
    require(args.shape in SHAPES, "shape", args.shape, f"one of {', '.join(SHAPES)}")
    batches, queries, rooms = (whole_numbers(name, getattr(args, name)) for name in ("batch", "rows", "slots"))
    require(max(queries) <= min(rooms), "rows", max(queries), f"at most as many as slots, {min(rooms)}")
    config = config_of(args.shape, max(rooms))
    scores = max(batches) * config.n_heads * max(queries) * max(rooms)
    check_memory("the scores of attention, written out in float64,", 3 * 8 * scores, device)
    use(args.threads)
    cells = [(seen, B, Q, K) for seen in SEEN for B in batches for Q in queries for K in rooms]
    lines = []
    for seen, B, Q, K in tqdm(cells, unit="cell", leave=False, disable=None):
        q = torch.randn(B, Q, config.n_heads, config.head_width, device=device, dtype=dtype).transpose(1, 2)
        cache = Cache(config, B, K, device, dtype).of(0)
        cache.write(slice(0, K), *torch.randn(2, *cache.k.shape, device=device, dtype=dtype))
        k, v = cache.read(slice(0, K))
        mask = SEEN[seen](Q, K, device)
        expected = explicit(q.double(), k.double(), v.double(), mask)()
        calls = {name: kernel(q, k, v, mask) for name, kernel in KERNELS.items()}
        with many_programs():  # or FlexAttention would refuse the ninth size
            calls = {name: call for name, call in calls.items() if exact(call, expected)}
        times = alternate(list(calls.values()), args.rounds, device)
        ms = {name: statistics.median(seconds) * 1e3 for name, seconds in zip(calls, times)}
        lines.append({"seen": seen, "batch": B, "rows": Q, "slots": K, "ms": ms})
    where = ran_on(device, dtype)
    if args.json:
        print(json.dumps({"settings": vars(args), "machine": where, "cells": lines}))
        return
    print(f"{where}.\nOne layer of shape {args.shape}. Median of {args.rounds} rounds; ms.\n")
    names = [name for name in KERNELS if any(name in line["ms"] for line in lines)]
    figures = [[short(line["ms"][name]) if name in line["ms"] else "-" for name in names] for line in lines]
    first = ("seen", "batch", "rows", "slots")
    print(table([*first, *names], [[*(str(line[name]) for name in first), *own] for line, own in zip(lines, figures)]))
