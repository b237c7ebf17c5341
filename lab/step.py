"""A compiled forward beside an eager one, in turns: `python -m lab.step`. Times, and the bytes that each allocates.

The shapes are those of Fast-dLLM's dual cache at the start of a block, all positions, and inside it, the block alone; on a random model.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from compiled import Compiled
from lab.bench import alternate, random_model
from lab.command_line import Parser, use_threads
from lab.report import about, table
from load_weights import DTYPES, find_device
from model import Config

NUMBERS = {"d_model": 768, "n_layers": 12, "n_heads": 12, "mlp_hidden_size": 2048, "vocab_size": 32000, "canvas": 512, "block_length": 32, "rounds": 15}  # fmt: skip


def allocated(call) -> float:
    """Megabytes that a call allocates on a CPU, in all."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    return sum(max(0, event.self_cpu_memory_usage) for event in seen.events()) / 1e6


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="lab.step", description=__doc__.splitlines()[0])
    for name, default in NUMBERS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--batch", default="1,4", metavar="A,B", help="numbers of rows, default 1,4")
    parser.add_argument("--device", help="default the first there is of cuda, mps, cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args(arguments)
    if (low := [name for name in NUMBERS if getattr(args, name) < 1]) or not all(part.isdecimal() for part in args.batch.split(",")):
        parser.error(f"{low[0]} is {getattr(args, low[0])}, expected at least 1" if low else f"batch is {args.batch!r}, expected numbers")
    if args.d_model % (2 * args.n_heads) or args.block_length > args.canvas // 2:
        parser.error("d_model must be a multiple of twice n_heads, and block_length at most half of canvas")
    report(args)


def report(args: argparse.Namespace) -> None:
    shape = (args.d_model, args.n_layers, args.n_heads, args.mlp_hidden_size, args.vocab_size)
    model = random_model(Config(*shape, 0, 1), find_device(args.device), DTYPES[args.dtype])
    use_threads(model)
    fast, S, start = Compiled(model), args.canvas, args.canvas // 2
    end = start + args.block_length
    print(about(model) + ".")
    print(f"{args.n_layers} layers of {args.d_model}, vocabulary {args.vocab_size}, {S} slots. Median of {args.rounds} rounds.\n")
    rows = []
    for batch in map(int, args.batch.split(",")):
        for name, query, wanted in (
            ("all", slice(0, S), slice(start, end)),
            ("the block", slice(start, end), slice(0, args.block_length)),
        ):
            ids = torch.randint(args.vocab_size, (batch, query.stop - query.start), device=model.device)
            caches = [m.new_cache(batch, S) for m in (fast, model)]
            calls = [lambda m=m, cache=cache: m(ids, query, slice(0, S), None, cache, wanted) for m, cache in zip((fast, model), caches)]
            began = time.perf_counter()
            calls[0]()
            took = time.perf_counter() - began
            seconds = alternate(calls, args.rounds, model.device)
            ratio = statistics.median(eager / compiled for compiled, eager in zip(*seconds))  # of neighbours in time
            ms = [f"{statistics.median(each) * 1e3:.1f}" for each in seconds]
            bytes = [f"{allocated(call):.1f}" for call in calls] if model.device.type == "cpu" else ["-", "-"]
            rows.append([name, str(batch), str(ids.shape[1]), ms[1], ms[0], f"{ratio:.2f}", bytes[1], bytes[0], f"{took:.0f}"])
    heads = ["recomputed", "batch", "rows each", "eager ms", "compiled ms", "speed-up", "eager MB", "compiled MB", "compiling s"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
