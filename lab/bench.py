"""What the decoder costs and what it gets right, measured: `python -m lab.bench compare | oracle | forward`.

compare    every strategy on the same held-out problems: accuracy, forwards, rows, tokens per forward, tokens/s, speed-up over llada
oracle     how often each rule stays inside a small language when the model makes no error, beside what theory says of one step
forward    one forward beside the bare matrix products of the same shapes: how much of the time is not arithmetic

Times on shared machines drift. So whatever is compared takes turns within one run, and the figure to quote is the ratio.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dllm import EMBEDDED, STRATEGIES, Parser, generate, plan, use_threads
from lab.oracle import LANGUAGES, Oracle
from lab.tasks import TASKS, Problem, check, problems
from load_weights import DTYPES, find_device, load_model, load_tokenizer
from model import Config, LLaDA


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
    print(f"torch {torch.__version__}, {device} ({platform.machine()}, {torch.get_num_threads()} threads), {args.dtype}")
    print(f"d_model {args.d_model}, {args.n_layers} layers, vocabulary {args.vocab_size}, canvas {S}, block {args.block_length} at {start}")
    print(f"median of {args.rounds} rounds\n")
    print(f"{'':18}{'rows':>6}{'logits':>8}{'forward ms':>12}{'products ms':>13}{'ratio':>8}")
    for shape in shapes:
        ours, bare = alternate([whole_forward(model, shape, S), bare_products(model, shape, S)], args.rounds, device)
        ratio = statistics.median(a / b for a, b in zip(ours, bare))  # of neighbours in time, which share the machine's mood
        Q, ms = shape.end - shape.first, [statistics.median(seconds) * 1e3 for seconds in (ours, bare)]
        print(f"{shape.name:18}{Q:6}{len(range(Q)[shape.rows]):8}{ms[0]:12.1f}{ms[1]:13.1f}{ratio:8.2f}", flush=True)


# --- compare -----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """What one strategy did with the problems so far."""

    right: int = 0
    problems: int = 0
    tokens: int = 0  # before the first EOS: padding never counts as speed
    forwards: int = 0  # summed over the problems, as if each had been decoded alone
    rows: int = 0
    seconds: float = 0.0

    def add(self, result, right: int) -> None:
        self.right, self.problems = self.right + right, self.problems + len(result.lengths)
        self.tokens, self.forwards = self.tokens + sum(result.lengths), self.forwards + sum(result.forwards)
        self.rows, self.seconds = self.rows + result.rows, self.seconds + result.seconds

    def figures(self, baseline: "Score | None") -> dict[str, float]:
        """Means over the problems; accuracy with the ends of its 95 % Wilson interval; the speed-up over the baseline of the same run."""
        n, p, z = self.problems, self.right / self.problems, 1.96
        middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        found = {"accuracy": p, "low": middle - half, "high": middle + half, "forwards": self.forwards / n, "rows": self.rows / n}
        found |= {"tokens_per_forward": self.tokens / self.forwards, "tokens_per_second": self.tokens / self.seconds}
        return found | ({"speed_up": found["tokens_per_second"] / (baseline.tokens / baseline.seconds)} if baseline else {})


def answer(model: LLaDA, tokenizer, chosen: list[Problem], strategy: str, **settings):
    """Decode a batch of problems in the chat template; returns the Result and how many answers the checker accepts."""
    result = generate(model, [tokenizer.encode_chat([{"role": "user", "content": p.prompt}]) for p in chosen], strategy, **settings)
    texts = [tokenizer.decode(result.answer(row), skip_special_tokens=False) for row in range(len(chosen))]
    return result, sum(map(check, chosen, texts))


def compare(args: argparse.Namespace) -> None:
    """Decode the same held-out problems with every strategy in turn, batch by batch, and print a table."""
    settings = {"gen_length": args.gen_length, "block_length": args.block_length}
    names = args.strategies.split(",")
    for name in names:
        plan(name, settings)  # refuses before anything is loaded
    model, tokenizer = load_model(args.model, args.adapter, args.device), load_tokenizer(args.model)
    use_threads(model)
    tasks = [args.task] if args.task else list(TASKS)
    scores = {task: {name: Score() for name in names} for task in tasks}
    with tqdm(total=args.limit * len(tasks) * len(names), unit="problem", leave=False) as bar:
        for task in tasks:
            stream = problems(args.seed, task, held_out=True)
            for first in range(0, args.limit, args.batch_size):
                chosen = list(islice(stream, min(args.batch_size, args.limit - first)))
                for name in names:
                    scores[task][name].add(*answer(model, tokenizer, chosen, name, **settings))
                    bar.update(len(chosen))
    figures = {task: {name: score.figures(of.get("llada")) for name, score in of.items()} for task, of in scores.items()}
    if args.json:
        print(json.dumps({"settings": vars(args), "torch": torch.__version__, "figures": figures}))
        return
    print(
        f"torch {torch.__version__}, {model.device} ({platform.machine()}, {torch.get_num_threads()} threads), batches of {args.batch_size}"
    )
    print(f"{args.limit} held-out problems a task, seed {args.seed}, gen_length {args.gen_length}, block_length {args.block_length}")
    for task, of in figures.items():
        print(f"\n{task:14}{'right':>8}{'95 % interval':>16}{'forwards':>10}{'rows':>8}{'tokens/fwd':>12}{'tokens/s':>10}{'speed-up':>10}")
        for name, f in of.items():
            interval = f"{f['low']:.1%} - {f['high']:.1%}"
            speed = f"{f['tokens_per_forward']:12.2f}{f['tokens_per_second']:10.0f}" + (f"{f['speed_up']:9.1f}x" if "speed_up" in f else "")
            print(f"{name:14}{f['accuracy']:8.1%}{interval:>16}{f['forwards']:10.1f}{f['rows']:8.0f}{speed}")


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
    print(f"{args.limit} runs each, length {args.length}, temperature 1; in brackets, forwards a string\n")
    print(f"{'':14}{'theory, at once':>16}" + "".join(f"{name:>17}" for name in RULES))
    for name, exact in oracles.items():
        line = f"{name:14}{exact.one_step_validity():16.1%}"
        for strategy, own in RULES.values():
            settings = own | {"gen_length": args.length, "block_length": args.length, "temperature": 1.0, "seed": args.seed}
            result = generate(exact, [exact.encode("")] * args.limit, strategy, **settings)
            valid = exact.contains(result.tokens[:, 1:]).float().mean().item()
            line += f"{f'{valid:.1%} ({sum(result.forwards) / args.limit:.1f})':>17}"
        print(line, flush=True)


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
    sub = command(compare, limit=100, batch_size=1, gen_length=128, block_length=32)
    sub.add_argument("--strategies", default=",".join(STRATEGIES), metavar="A,B", help="default all")
    sub.add_argument("--task", choices=TASKS, help="default all")
    sub.add_argument("--model", default=str(EMBEDDED), help="a folder or a Hugging Face id (default the embedded model)")
    sub.add_argument("--adapter", help="a LoRA adapter in PEFT layout to merge")
    sub.add_argument("--device", help="default the first there is of cuda, mps, cpu")
    sub.add_argument("--seed", type=int, default=1234, help="of the problems, default 1234")
    sub.add_argument("--json", action="store_true", help="print the figures as JSON")

    sub = command(oracle, limit=1000, length=6)
    sub.add_argument("--seed", type=int, default=0, help="of the sampling, default 0")

    args = parser.parse_args(arguments)
    for name in args.numbers:
        if getattr(args, name) < 1:
            parser.error(f"{name} is {getattr(args, name)}, expected at least 1")
    run = args.run
    del args.run, args.numbers
    try:
        run(args)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
