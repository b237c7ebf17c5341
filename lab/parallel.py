"""Several processes: `torchrun --nproc-per-node 2 dllm.py ...`. One prompt: each holds a part of
every matrix. Many: each answers its share.

Tensor parallelism is torch.distributed's own plan: the heads and the feed-forward units are dealt
out, and each layer sums what the processes found twice. All decode on the same logits; only the
first prints. Left out on purpose: an engine of our own, several machines with several GPUs each as
two levels, int8 together with a split model.
"""

import os
import time
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

import torch
import torch.distributed as dist

from model import LLaDA
from strategies import require


def processes() -> int:
    """How many torchrun has started; 1 without it, even where a scheduler has set WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def own_device(device: str | None) -> str | None:
    """What `--device` is for this process: a GPU of its own, or what was asked for if there are
    none; ValueError if there are too few for all."""
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", processes()))
    if not gpus or device is not None and not device.startswith("cuda"):
        return device
    valid = "cuda, which gives each process a GPU of its own, or cpu"
    require(device in (None, "cuda"), "--device", device, valid)
    valid = f"at most {gpus}, a GPU for each process, or more with --device cpu"
    require(here <= gpus, "--nproc-per-node", here, valid)
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def together(parser: ArgumentParser, args: Namespace, one_model: bool):
    """Join the other processes, each with a GPU if there are any; only the first is heard.

    one_model: sets args.split, so that they hold one model together; else each has its own
    """
    if processes() == 1:
        yield
        return
    with open(os.devnull, "w") as nowhere, ExitStack() as stack:
        if rank():
            args.trace, args.watch, args.explain = None, None, False
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        try:
            join(parser, args)
            stack.callback(dist.destroy_process_group)
            if one_model:
                args.split = split
            yield
        except SystemExit:
            # torchrun ends all as soon as one has ended: let the first have its say
            time.sleep(2 if rank() else 0)
            raise


def join(parser: ArgumentParser, args: Namespace) -> None:
    try:
        device = own_device(getattr(args, "device", "cpu"))
    except ValueError as error:  # before any process waits for another
        parser.error(str(error))
    if on_gpu := (device or "").startswith("cuda:") and torch.cuda.device_count() > 0:
        args.device = device
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")


def gathered(value: object) -> list:
    """What each process gives here, in the order of their ranks."""
    if processes() == 1:
        return [value]
    values = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def split(model: LLaDA) -> None:
    """Lay the matrices of a model out over the processes, before it has weights.

    Each then holds its share of the heads and of the cache.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import parallel as tensor_parallel

    n = processes()
    for name in ("n_heads", "kv_heads", "mlp_hidden_size", "vocab_size"):
        size = getattr(model.config, name)
        valid = f"a number that divides the model's {size} ({name})"
        require(size % n == 0, "--nproc-per-node", n, valid)
    mesh = init_device_mesh("cuda" if dist.get_backend() == "nccl" else "cpu", (n,))
    dealt, summed = ("q_proj", "k_proj", "v_proj", "ff_proj", "up_proj"), ("attn_out", "ff_out")
    plan = {name: tensor_parallel.ColwiseParallel() for name in dealt}
    plan |= {name: tensor_parallel.RowwiseParallel() for name in summed}
    for block in model.blocks:
        block.heads, block.kv_heads = block.heads // n, block.kv_heads // n
        tensor_parallel.parallelize_module(block, mesh, plan)
    whole = tensor_parallel.ColwiseParallel(output_layouts=Replicate())
    tensor_parallel.parallelize_module(model, mesh, {"ff_out": whole})
