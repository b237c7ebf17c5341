"""Several processes: `torchrun --nproc-per-node 2 dllm.py ...`. One prompt: each holds a part of every matrix. Many: each answers its share.

Tensor parallelism is torch.distributed's own plan: the heads and the feed-forward units are dealt out, and each layer sums what the processes
found twice, after attention and after the feed-forward. All of them decode, on the same logits; only the first prints.

Left out on purpose: an engine of our own, several machines with several GPUs each as two levels, int8 together with a split model.
"""

import os
import time
from argparse import Namespace
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

import torch
import torch.distributed as dist
from options import require

from model import LLaDA


def processes() -> int:
    """How many torchrun has started; 1 without it, even where a cluster's scheduler has set WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


@contextmanager
def together(args: Namespace, one_model: bool):
    """Join the other processes for as long as this lasts, each with a GPU of its own where there are so many; only the first is heard.

    one_model: sets args.split, so that they hold one model together; without it each has its own
    """
    local = int(os.environ["LOCAL_RANK"])
    device = getattr(args, "device", "cpu")
    if device in (None, "cuda") and torch.cuda.device_count() > local:
        device = args.device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device and device.startswith("cuda") else "gloo")
    with open(os.devnull, "w") as nowhere, ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        if one_model:
            args.split = split
        if rank():
            args.trace, args.watch, args.explain = None, None, False
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        try:
            yield
        except SystemExit:
            time.sleep(
                2 if rank() else 0
            )  # torchrun ends all as soon as one has ended: let the first have its say
            raise


def gathered(value: object) -> list:
    """What each process gives here, in the order of their ranks."""
    if processes() == 1:
        return [value]
    values = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def split(model: LLaDA) -> None:
    """Lay the matrices of a model out over the processes, before it has weights. Each then holds its share of the heads and of the cache."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    n, config = processes(), model.config
    for name in ("n_heads", "kv_heads", "mlp_hidden_size", "vocab_size"):
        require(
            getattr(config, name) % n == 0,
            "--nproc-per-node",
            n,
            f"a number that divides the model's {getattr(config, name)} ({name})",
        )
    mesh = init_device_mesh("cuda" if dist.get_backend() == "nccl" else "cpu", (n,))
    dealt = {
        name: ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj", "ff_proj", "up_proj")
    }
    summed = {name: RowwiseParallel() for name in ("attn_out", "ff_out")}
    for block in model.blocks:
        block.heads, block.kv_heads = block.heads // n, block.kv_heads // n
        parallelize_module(block, mesh, dealt | summed)
    parallelize_module(model, mesh, {"ff_out": ColwiseParallel(output_layouts=Replicate())})
