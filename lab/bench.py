"""What the decoder costs, measured: `python -m lab.bench forward`.

forward    one forward beside the bare matrix products of the same shapes, in the same run: how much of the time is not arithmetic

Times on shared machines drift; so every figure here is a median over rounds that alternate between what is compared, and the result
to quote is the ratio.
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dllm import Parser
from load_weights import DTYPES, find_device
from model import Config, LLaDA


@dataclass(frozen=True)
class Shape:
    """One forward of a model over a canvas: Q positions computed, K slots visible, R rows with logits."""

    name: str
    first: int
    end: int
    rows: slice


def random_model(config: Config, device: torch.device, dtype: torch.dtype) -> LLaDA:
    """Weights of about the scale of a trained model, made where they are used."""
    with torch.device("meta"):
        model = LLaDA(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(std=1 / math.sqrt(weight.shape[1]))
    return model


def bare_products(model: LLaDA, shape: Shape, canvas: int) -> Callable[[], None]:
    """The matrix products of one forward and nothing else: no norms, rotations, softmax, activations or cache writes."""
    c, Q = model.config, shape.end - shape.first
    R = len(range(Q)[shape.rows])
    draw = lambda *size: torch.randn(*size, device=model.device, dtype=model.dtype)  # noqa: E731
    narrow, wide, joined = draw(1, Q, c.d_model), draw(1, Q, c.mlp_hidden_size), draw(1, Q, c.n_heads * c.head_width)
    q = draw(1, c.n_heads, Q, c.head_width)
    k = v = draw(1, c.n_heads, canvas, c.head_width)
    weights = draw(1, c.n_heads, Q, canvas)

    def run() -> None:
        for layer, block in enumerate(model.blocks):
            n = R if layer == c.n_layers - 1 else Q  # the last layer computes only the rows that get logits
            F.linear(narrow, block.k_proj.weight)
            F.linear(narrow, block.v_proj.weight)
            F.linear(narrow[:, :n], block.q_proj.weight)
            q[:, :, :n] @ k.transpose(2, 3)
            weights[:, :, :n] @ v
            F.linear(joined[:, :n], block.attn_out.weight)
            F.linear(narrow[:, :n], block.ff_proj.weight)
            F.linear(narrow[:, :n], block.up_proj.weight)
            F.linear(wide[:, :n], block.ff_out.weight)
        F.linear(narrow[:, :R], model.ff_out.weight)

    return run


def whole_forward(model: LLaDA, shape: Shape, canvas: int) -> Callable[[], None]:
    ids = torch.zeros(1, shape.end - shape.first, dtype=torch.int64, device=model.device)
    query, visible, cache = slice(shape.first, shape.end), slice(0, canvas), model.new_cache(1, canvas)
    return lambda: model(ids, query, visible, cache=cache, rows=shape.rows)


def alternate(calls: list[Callable[[], None]], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of each call in each round, after one round that warms up; the calls take turns."""
    seconds = [[] for _ in calls]
    for round in range(rounds + 1):
        for call, times in zip(calls, seconds):
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round:
                times.append(time.perf_counter() - began)
    return seconds


@torch.inference_mode()
def forward(args: argparse.Namespace) -> None:
    """Print the time of a full, a prefix-cached and a block-only forward beside their bare products, and the ratios."""
    device, dtype = find_device(args.device), DTYPES[args.dtype]
    config = Config(args.d_model, args.n_layers, args.d_model // 64, args.d_model * 8 // 3, args.vocab_size, 0, 1)
    model = random_model(config, device, dtype)
    start, S = args.canvas // 2, args.canvas
    block = slice(start, start + args.block_length)
    shapes = [
        Shape("full, all logits", 0, S, slice(None)),
        Shape("full", 0, S, block),
        Shape("prefix-cached", start, S, slice(0, args.block_length)),
        Shape("block only", start, block.stop, slice(0, args.block_length)),
    ]
    print(f"torch {torch.__version__}, {device} ({platform.machine()}, {torch.get_num_threads()} threads), {args.dtype}")
    print(f"d_model {args.d_model}, {args.n_layers} layers, vocabulary {args.vocab_size}, canvas {S}, block {args.block_length} at {start}")
    print(f"median of {args.rounds} rounds\n")
    print(f"{'':18}{'rows':>6}{'logits':>8}{'forward ms':>12}{'products ms':>13}{'ratio':>8}")
    for shape in shapes:
        ours, bare = alternate([whole_forward(model, shape, S), bare_products(model, shape, S)], args.rounds, device)
        ratio = statistics.median(a / b for a, b in zip(ours, bare))  # of neighbours in time, which share the machine's mood
        Q, ms = shape.end - shape.first, [statistics.median(seconds) * 1e3 for seconds in (ours, bare)]
        print(f"{shape.name:18}{Q:6}{len(range(Q)[shape.rows]):8}{ms[0]:12.1f}{ms[1]:13.1f}{ratio:8.2f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="lab.bench", description="Measure what decoding costs.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("forward", help="one forward beside the bare matrix products of the same shapes")
    for flag, default in (("d-model", 768), ("n-layers", 12), ("vocab-size", 32000), ("canvas", 512), ("block-length", 32), ("rounds", 9)):
        one.add_argument("--" + flag, type=int, default=default, metavar="N", help=f"default {default}")
    one.add_argument("--device", help="default the first there is of cuda, mps, cpu")
    one.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args(arguments)
    for name in ("d_model", "n_layers", "vocab_size", "canvas", "block_length", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"{name} is {getattr(args, name)}, expected at least 1")
    if args.d_model % 64 or args.canvas // 2 + args.block_length > args.canvas:
        parser.error("d_model must be a multiple of 64, and block_length at most half of canvas")
    try:
        forward(args)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
