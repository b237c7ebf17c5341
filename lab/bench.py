"""What the decoder costs and what it gets right, measured: `python -m lab.bench compare | delayed | oracle | forward | results`.

compare    strategies on the same held-out problems: accuracy, forwards, rows, tokens per forward, tokens/s, speed-up over llada (compare.py)
delayed    how early each token is already the model's first choice (compare.py)
oracle     how often each rule stays inside a small language when the model makes no error, beside what theory says of one step
forward    one forward beside the bare matrix products of the same shapes: how much of the time is not arithmetic
results    run the commands of docs/results.md again and write what they print under them (report.py)

Times on shared machines drift. So whatever is compared takes turns within one run, and the figure to quote is the ratio.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from dllm import STRATEGIES, generate
from lab import parallel
from lab.command_line import Parser, has_weights
from lab.compare import compare, delayed
from lab.oracle import LANGUAGES, Oracle
from lab.report import about, remeasure, table
from load_weights import DTYPES, find_device
from model import Config, LLaDA

RESULTS = Path(__file__).parent.parent / "docs" / "results.md"


# --- forward -----------------------------------------------------------------------------------------------------------------------------


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
    if args.d_model % 64 or args.block_length > args.canvas // 2:
        raise ValueError("d_model must be a multiple of 64, and block_length at most half of canvas")
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
    print(about(model) + ".")
    print(
        f"d_model {args.d_model}, {args.n_layers} layers, vocabulary {args.vocab_size}, canvas {S}, block {args.block_length} at {start}."
    )
    print(f"Median of {args.rounds} rounds.\n")
    rows = []
    for shape in shapes:
        ours, bare = alternate([whole_forward(model, shape, S), bare_products(model, shape, S)], args.rounds, device)
        ratio = statistics.median(a / b for a, b in zip(ours, bare))  # of neighbours in time, which share the machine's mood
        Q, ms = shape.end - shape.first, [statistics.median(seconds) * 1e3 for seconds in (ours, bare)]
        rows.append([shape.name, str(Q), str(len(range(Q)[shape.rows])), f"{ms[0]:.1f}", f"{ms[1]:.1f}", f"{ratio:.2f}"])
    print(table(["", "rows", "logits", "forward ms", "products ms", "ratio"], rows))


# --- oracle ------------------------------------------------------------------------------------------------------------------------------

RULES = {
    "all at once": ("llada", {"steps": 1}),
    "two steps": ("llada", {"steps": 2}),
    "one by one": ("llada", {}),
    "threshold 0.5": ("fast-dllm", {"cache": "none", "threshold": 0.5}),
    "threshold 0.9": ("fast-dllm", {"cache": "none", "threshold": 0.9}),
    "factor 1": ("fast-dllm", {"cache": "none", "factor": 1.0}),
    "localleap": ("localleap", {"relaxed_threshold": 0.4}),
}


def oracle(args: argparse.Namespace) -> None:
    """Print how often each rule, sampling at temperature 1, writes a string of the language, and in how many forwards."""
    oracles = {name: Oracle(f"{name}-{args.length}") for name in LANGUAGES}
    print(f"{args.limit} runs each, length {args.length}, temperature 1; in brackets, forwards a string.\n")
    rows = []
    for name, exact in oracles.items():
        line = [name, f"{exact.one_step_validity():.1%}"]
        for strategy, own in RULES.values():
            settings = own | {"gen_length": args.length, "block_length": args.length, "temperature": 1.0, "seed": args.seed}
            result = generate(exact, [exact.encode_chat([])] * args.limit, strategy, **settings)
            valid = exact.contains(result.tokens[:, 1:]).float().mean().item()
            line.append(f"{valid:.1%} ({sum(result.forwards) / args.limit:.1f})")
        rows.append(line)
    print(table(["", "theory, at once", *RULES], rows))


def results(args: argparse.Namespace) -> None:
    """Measure the tables of docs/results.md again, those whose command holds a text or all."""
    remeasure(RESULTS, args.only, main)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="lab.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable, **numbers: int) -> Parser:
        sub = commands.add_parser(run.__name__, help=run.__doc__.splitlines()[0])
        for name, default in numbers.items():
            sub.add_argument("--" + name.replace("_", "-"), type=int, default=default, metavar="N", help=f"default {default}")
        sub.set_defaults(run=run, numbers=list(numbers))
        return sub

    sub = command(forward, d_model=768, n_layers=12, vocab_size=32000, canvas=512, block_length=32, rounds=9)
    sub.add_argument("--device", help="default the first there is of cuda, mps, cpu")
    sub.add_argument("--dtype", choices=DTYPES, default="float32")
    for run, limit in ((compare, 100), (delayed, 20)):
        sub = command(run, limit=limit, batch_size=1, gen_length=128)
        sub.add_argument("--task", metavar="A,B", help="stories, or names of tasks (default all)")
        sub.add_argument("--model", help="a folder or a Hugging Face id (default the embedded one made for each strategy)")
        sub.add_argument("--adapter", help="a LoRA adapter in PEFT layout to merge")
        sub.add_argument("--device", help="default the first there is of cuda, mps, cpu")
        sub.add_argument("--dtype", choices=DTYPES, help="default float32 on a CPU, else bfloat16")
        sub.add_argument("--seed", type=int, default=1234, help="of the problems, default 1234")
        if run is compare:
            ready = ",".join(name for name in STRATEGIES if has_weights(name))
            meaning = "as fast-dllm or fast-dllm:cache=dual:threshold=0.8; default all whose weights are here"
            sub.add_argument("--strategies", default=ready, metavar="A,B", help=meaning)
            sub.add_argument("--sweep", action="store_true", help="each at several values of its main setting")
            sub.add_argument("--plot", metavar="FILE", help="draw accuracy against tokens per forward, .png or .svg; needs matplotlib")
            sub.add_argument("--json", action="store_true", help="print the figures as JSON")

    sub = command(oracle, limit=1000, length=6)
    sub.add_argument("--seed", type=int, default=0, help="of the sampling, default 0")

    sub = command(results)
    sub.add_argument("only", nargs="?", default="", help="run only the commands that hold this text")

    args = parser.parse_args(arguments)
    for name in args.numbers:
        if getattr(args, name) < 1:
            parser.error(f"{name} is {getattr(args, name)}, expected at least 1")
    run = args.run
    del args.run, args.numbers
    shared = parallel.processes() > 1
    with parallel.together(args, one_model=False) if shared else nullcontext():
        try:
            if shared and run is not compare:
                raise ValueError(f"{run.__name__} works in one process only; compare shares its problems out")
            run(args)
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
