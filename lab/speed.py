"""How near a forward comes to what its arithmetic alone would take: `python -m lab.bench speed`.

A forward here is the decoder's own, in the middle of an answer, where the cache is in use. Its
floor on a CPU: its matrix products and nothing else. On a GPU: the bytes that these read over the
rate of a copy, or their operations over the rate of a large product, whichever takes longer.

Left out on purpose: whole decodes, which `compare` measures, and speed from several processes.

Letters: B batch, Q queries, K slots they attend to, H heads, G key/value heads, D head width.
"""

import copy
import functools
import itertools
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from dllm import Canvas, Step, plan, prepare, stream
from kernels import Scores
from lab.command_line import TINY
from lab.files import write
from lab.report import about, show
from load_weights import DTYPES, check_memory, find_device, load_config
from model import Config, LLaDA, Pass
from strategies import STRATEGIES, Window, build, require, scored
from strategies.fast_dllm import CacheName

SHAPES: dict[str, Config | None] = {
    "tiny": None,  # the embedded model's, read when it is asked for
    "60m": Config(512, 8, 8, 1536, 32000, 0, 1),
    "mid": Config(768, 12, 12, 3072, 32000, 0, 1),
    "8b": Config(4096, 32, 32, 12288, 126464, 126336, 126081),  # LLaDA-8B's
}

# Every cache policy there is, as the strategy that brings it. Streaming-dLLM's 96 slots behind a
# block would be all there are of a short answer: here it keeps 16.
POLICIES = {name: ("fast-dllm", {"cache": name}) for name in get_args(CacheName)} | {
    "pruned": ("streaming", {"window_size": 16}),
    "exact": ("d2f", {}),
    "delayed": ("dkv", {}),
    "evicting": ("sparse", {}),
    "partly": ("dllm-cache", {}),
}
CACHES = {name: policy for name, policy in POLICIES.items() if policy[0] in STRATEGIES}


# --- what is measured ----------------------------------------------------------------------------


def third(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
    """Fill a block by thirds, from the left: in the third forward every cache is in use."""
    return candidates & (candidates.cumsum(-1) <= candidates.shape[-1] // 3)


def at_work(model: LLaDA, cache: str, batch: int, args, compile=False) -> tuple[Canvas, Step]:
    """A canvas in the middle of its answer, and the step whose forward first uses the cache there.

    The answer up to one block before the middle is given, as a template: a decode of it would take
    the longest, and show nothing.
    """
    mask, eos = model.config.mask_token_id, model.config.eos_token_id
    token, block = min({0, 1, 2} - {mask, eos}), args.block_length
    middle = args.gen_length // block // 2 * block
    template = [token] * (middle - block) + [mask] * (args.gen_length - middle + block)
    name, own = CACHES[cache]
    strategy = replace(build(name, **own), rule=third)
    settings = {"block_length": block, "eos": "fill", "compile": compile}
    prompts = [[token] * args.prompt_length] * batch
    canvas = prepare(model, prompts, strategy, settings, [template] * batch)
    canvas.held[:] = True  # a row that is full stays, and its slots with it
    here = (s for s in stream(canvas) if s.window.start >= args.prompt_length + middle)
    return canvas, next(step for step in here if step.window.age not in (0, 1))


def random_model(config: Config, device: torch.device, dtype: torch.dtype) -> LLaDA:
    """Weights of about the scale of a trained model, made where they are used."""
    with torch.device("meta"):
        model = LLaDA(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(std=weight.shape[1] ** -0.5) if weight.dim() > 1 else weight.fill_(1.0)
    return model


# --- the papers' way -----------------------------------------------------------------------------


class Everywhere:
    """A model whose logits are of every position that it computes, as in the papers' code."""

    def __init__(self, model: LLaDA):
        self.model = model

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def __call__(self, ids: Tensor, at: Pass, *given) -> Tensor:
        self.logits = self.model(ids, at._replace(rows=slice(None)), *given)  # [B, Q, V]
        return self.logits[:, at.rows]


def in_float64(logits: Tensor, rows, masked: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Tokens and their probabilities [b, n * L] as Fast-dLLM's code finds them: a softmax of all
    logits there are, and of each the share of the likeliest."""
    token = logits.argmax(-1)
    share = logits.double().softmax(-1).gather(-1, token[..., None])[..., 0]
    return token[:, rows], share[:, rows]


def by_block(logits: Tensor, rows, masked: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The same as D2F's code does: block by block a softmax of what is masked, and its maximum."""
    token, share = torch.zeros_like(masked, dtype=torch.int64), logits.new_zeros(masked.shape)
    blocks = (t.split(length, 1) for t in (logits[:, rows], masked, token, share))
    for z, cells, tokens, shares in zip(*blocks):  # the two last are views
        shares[cells], tokens[cells] = z[cells].softmax(-1).max(-1)
    return token, share


THEIRS = {"none": in_float64, "prefix": in_float64, "dual": in_float64, "exact": by_block}


def steps(canvas: Canvas, step: Step, cache: str) -> list[Callable]:
    """This step once more, up to its scores, and as the authors' code has it, on this network."""
    window, at, length = step.window, step.at, canvas.block_length
    stands, masked = canvas.x[canvas.live, window.start : window.end], canvas.candidates(window)
    ours, theirs = copy.copy(canvas), copy.copy(canvas)
    ours.narrow, theirs.model = True, Everywhere(canvas.model)

    def their_step() -> tuple[Tensor, Tensor]:
        theirs.forward(window, at)
        theirs.forbid(theirs.model.logits)
        return THEIRS[cache](theirs.model.logits, scored(at, window), masked, length)

    return [lambda: ours.score(ours.logits(window, at), None, stands), their_step]


# --- the floor -----------------------------------------------------------------------------------


class Products(TorchFunctionMode):
    """Notes the matrix products of what runs within: each F.linear, and two for each attention."""

    def __init__(self):
        super().__init__()
        self.operands: list[tuple[Tensor, Tensor]] = []  # of each product
        self.slots = 0  # K
        self.kept: dict[torch.Size, Tensor] = {}

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is F.linear:
            x, weight = arguments[:2]
            self.operands.append((self.keep(x), weight.mT))
        elif function is F.scaled_dot_product_attention:
            q, k, v = map(self.keep, arguments[:3])
            q = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # [B, G, H / G * Q, D]
            self.slots = k.shape[2]
            shares = self.keep(q.new_ones(*q.shape[:3], self.slots))
            self.operands += [(q, k.mT), (shares, v)]
        return function(*arguments, **(named or {}))

    def keep(self, activations: Tensor) -> Tensor:
        """The first of this shape stands in for all, or those of every layer would be held."""
        return self.kept.setdefault(activations.shape, activations.contiguous())

    def run(self) -> None:
        for a, b in self.operands:
            a @ b


@functools.cache
def rates(device: torch.device) -> tuple[Callable, Callable, int, int]:
    """A copy and a product limited by nothing else; bytes of the one, the other's operations."""
    n = 8192
    source = torch.ones(2**30, dtype=torch.uint8, device=device)
    square = torch.ones(n, n, dtype=torch.bfloat16, device=device)
    target, product = torch.empty_like(source), torch.empty_like(square)
    copy = partial(target.copy_, source)
    return copy, partial(torch.mm, square, square, out=product), 2 * source.nbytes, 2 * n**3


def yardstick(products: Products, device: torch.device) -> tuple[list[Callable], Tensor]:
    """What to time beside a forward, and how much of each the floor has, [calls, 1].

    The longer counts. Every matrix, and the keys and values that are seen, must be read once.
    """
    if device.type != "cuda":
        return [products.run], torch.ones(1, 1)
    copy, multiply, moved, computed = rates(device)
    read = sum(b.nbytes for _, b in products.operands)
    operations = sum(2 * a.numel() * b.shape[-1] for a, b in products.operands)
    return [copy, multiply], torch.tensor([[read / moved], [operations / computed]])


# --- the table -----------------------------------------------------------------------------------


def alternate(calls: list[Callable], rounds: int, device: torch.device) -> Tensor:
    """Milliseconds of each call in each round, [calls, rounds], after one round that warms up."""
    ms = torch.zeros(len(calls), rounds + 1)
    for round in range(rounds + 1):
        for number, call in enumerate(calls):
            began = time.perf_counter()
            call()
            getattr(torch, device.type).synchronize()
            ms[number, round] = (time.perf_counter() - began) * 1e3
    return ms[:, 1:]


def measure(model: LLaDA, cache: str, batch: int, args: Namespace) -> dict[str, float]:
    """Time one forward, its floor and its scores in turns; with --compile, the compiled ones, too;
    with --theirs, a step as the authors' code has it, and a softmax beside the scores.

    Times are medians in ms, and a ratio is the median of the rounds' ratios.
    """
    kinds = (False, True) if args.compile else (False,)
    works = [at_work(model, cache, batch, args, compile) for compile in kinds]
    forwards = [partial(canvas.forward, step.window, step.at) for canvas, step in works]
    scores = [partial(canvas.score, step.logits) for canvas, step in works]
    with Products() as products:
        forwards[0]()
    tools, shares = yardstick(products, model.device)
    pair = steps(*works[0], cache) if args.theirs else []
    softmax = [lambda: works[0][1].logits.float().softmax(-1).max(-1)] * bool(pair)
    ms = alternate([*forwards, *scores, *tools, *pair, *softmax], args.rounds, model.device)
    sizes = len(works), len(works), len(tools), len(pair), len(softmax)
    forward, score, tool, step, softmax = ms.split(sizes)  # each [n, rounds]
    floor = (tool * shares).amax(0)  # [rounds]
    found = {"forward": forward[0], "floor": floor, "ratio": forward[0] / floor}
    found |= {"scores": score[0], "share": score[0] / forward[0]}
    if args.compile:
        found |= {"compiled": forward[1], "its ratio": forward[1] / floor}
        found |= {"speed-up": forward[0] / forward[1], "its scores": score[1]}
    if args.theirs:
        found |= {"step": step[0], "theirs": step[1], "faster": step[1] / step[0]}
        found |= {"of a softmax": score[0] / softmax[0]}
    medians = {name: rounds.quantile(0.5).item() for name, rounds in found.items()}
    return {"rows": works[0][1].rows, "slots": products.slots} | medians


@torch.inference_mode()
def speed(args: Namespace) -> None:
    """One forward for each cache beside its floor, and the scores beside the forward."""
    device = find_device(args.device)
    dtype = DTYPES[args.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    shapes, caches = checked_shapes(args, device, dtype), args.caches.split(",")
    if args.threads:
        torch.set_num_threads(args.threads)

    def rows(bar: tqdm) -> Iterator[dict]:
        for name, config in shapes.items():
            model = random_model(config, device, dtype)
            for cache, batch in itertools.product(caches, args.batch):
                row = {"shape": name, "cache": cache, "batch": batch}
                yield row | measure(model, cache, batch, args)
                bar.update()

    lengths = f"Prompt {args.prompt_length}, gen_length {args.gen_length}"
    asked = f"{lengths}, blocks of {args.block_length}. Median of {args.rounds} rounds; ms."
    write(f"{about(device, dtype)}.\n{asked}\n", "table")
    with tqdm(total=len(shapes) * len(caches) * len(args.batch), leave=False) as bar:
        show(rows(bar))


def checked_shapes(args: Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Config]:
    """The shapes to measure; ValueError, before any work, for what cannot be measured."""
    plan("llada", {"gen_length": args.gen_length, "block_length": args.block_length})
    enough = args.gen_length >= 2 * args.block_length >= 6  # one to fill the cache, one to use it
    require(enough, "gen_length", args.gen_length, "two blocks of three or more tokens")
    for cache in args.caches.split(","):
        known = [name for name in CACHES if name in THEIRS or not args.theirs]
        require(cache in known, "cache", cache, f"one of {', '.join(known)}")
    length, shapes = args.prompt_length + args.gen_length, {}
    for name in args.shapes.split(","):
        require(name in SHAPES, "shape", name, f"one of {', '.join(SHAPES)}")
        c = replace(SHAPES[name] or load_config(TINY), max_sequence_length=length)
        with torch.device("meta"):
            needed = sum(weight.numel() for weight in LLaDA(c).parameters())
        needed += max(args.batch) * length * c.slot_width
        check_memory(f"the weights and cache of shape {name}", needed * dtype.itemsize, device)
        shapes[name] = c
    return shapes
