"""How near a forward comes to what its arithmetic alone would take, and how its cost grows: `python -m lab.bench speed | grow`.

A forward here is the decoder's own (`dllm.forward`), with the window and the view of a decode that is stopped in the middle of an answer, where
the cache is in use. Its floor on a GPU: the bytes it must move over the rate of a copy, or its products over the rate of a large one, whichever
takes longer. On a CPU: the same products of the same shapes, and nothing else. Whatever is compared takes turns, so that the ratio holds on a
machine whose speed drifts.

Left out on purpose: whole decodes, which `compare` measures, and speed from several processes.

Letters: B batch, Q positions computed, K slots they attend to, R rows with logits, C width, H heads, G key/value heads, D head width, V vocabulary.
"""

import argparse
import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity
from tqdm import tqdm

import dllm
import kernels
from dllm import CacheName, Canvas, Step, Strategy, Window, block_causal, cached, pipeline, plan, prepare, serial, steps, traits
from lab.command_line import TINY
from lab.report import about, table
from load_weights import DTYPES, check_memory, find_device, load_config
from model import Config, LLaDA
from options import require
from related import delayed, evicting, partly

SHAPES: dict[str, Config | None] = {
    "tiny": None,  # the embedded model's, read when it is asked for
    "mid": Config(768, 12, 12, 3072, 32000, 0, 1),
    "8b": Config(4096, 32, 32, 12288, 126464, 126336, 126081),  # LLaDA-8B's
}


def third(scores: kernels.Scores, candidates: Tensor, window: Window) -> Tensor:
    """A rule that fills a block by thirds, from the left: a cache is refreshed in the first forward or the first two, and used in the third."""
    return candidates & (candidates.cumsum(-1) <= candidates.shape[-1] // 3)


USED = 2  # the age of a window in which every cache is in use

# Every cache policy there is, with its paper's settings, but for the pruned suffix: what the paper keeps would not fit between a block and the
# end of a short answer.
CACHES = {name: Strategy(third, cached(name), serial) for name in get_args(CacheName)} | {
    "pruned": Strategy(third, cached("prefix", window_size=16), serial),  # Streaming-dLLM's
    "exact": Strategy(third, block_causal, pipeline(0.1, 0.95)),  # D2F's
    "delayed": Strategy(third, delayed(refresh=8), serial),  # dKV-Cache's
    "evicting": Strategy(third, evicting(keep_ratio=0.5, kernel_size=3), serial),  # Sparse-dLLM's
    "partly": Strategy(third, partly(25, 5, transfer_ratio=0.25), serial),  # dLLM-Cache's
}


# --- what is measured --------------------------------------------------------------------------------------------------------------------


class Size(NamedTuple):
    """What a forward has to do."""

    B: int
    Q: int
    K: int
    R: int
    written: bool  # whether keys and values go through a cache
    renewed: int | None = None  # of the Q, those that every layer but the first computes whole; of the others it computes values alone


def random_model(config: Config, device: torch.device, dtype: torch.dtype) -> LLaDA:
    """Weights of about the scale of a trained model, made where they are used."""
    with torch.device("meta"):
        model = LLaDA(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(std=1 / math.sqrt(weight.shape[1]))
    return model


def at_work(model: LLaDA, cache: str, batch: int, prompt: int, gen_length: int, block_length: int, compile=False) -> tuple[Canvas, Step]:
    """A decode that has reached the middle of its answer, and the first forward there in which its cache is in use.

    The answer up to one block before the middle is given, as a template: a decode of it would take the longest, and show nothing.
    """
    mask, eos = model.config.mask_token_id, model.config.eos_token_id
    token = min({0, 1, 2} - {mask, eos})
    middle = gen_length // block_length // 2 * block_length
    given = [token] * (middle - block_length)
    settings = {"block_length": block_length, "eos": "fill", "compile": compile}
    template = given + [mask] * (gen_length - len(given))
    canvas = prepare(model, [[token] * prompt] * batch, CACHES[cache], settings, [template] * batch)
    canvas.held[:] = True  # a row that is full stays, and its slots with it
    return canvas, next(step for step in steps(canvas) if step.window.start >= prompt + middle and step.window.age >= USED)


def size_of(canvas: Canvas, step: Step) -> Size:
    at, window = step.at, step.window
    query = canvas.model.indices(at.query)
    K = len(query) if at.visible is None else canvas.model.indices(at.visible).shape[-1]
    renewed = min(len(query), sum(at.renew)) if at.renew else None
    return Size(len(window.live), len(query), K, len(query[at.rows]), at.visible is not None, renewed)


# --- the floor ---------------------------------------------------------------------------------------------------------------------------


def linears(model: LLaDA, size: Size) -> Iterator[tuple[Tensor, int]]:
    """Every matrix of a forward, with the rows of each canvas that it is multiplied with."""
    for layer, (block, queries) in enumerate(zip(model.blocks, attending(model, size))):
        partial = layer > 0 and size.renewed is not None
        for name in ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"):
            everywhere = name in ("k_proj", "v_proj") and not partial
            yield block.get_submodule(name).weight, size.Q if everywhere else queries
        if partial:
            yield block.v_proj.weight, size.Q  # which shows what has changed
    yield model.ff_out.weight, size.R


def attending(model: LLaDA, size: Size) -> list[int]:
    """The queries of each layer: in the last only those that get logits."""
    first, *others = [size.Q] * len(model.blocks)
    return [first] * len(others) + [size.R] if size.renewed is None else [first] + [size.renewed] * len(others)


def operations(model: LLaDA, size: Size) -> int:
    """Floating-point operations of a forward's products: two for each multiplication with its addition."""
    matrices = sum(size.B * rows * weight.numel() for weight, rows in linears(model, size))
    return 2 * (matrices + sum(2 * size.B * queries * size.K * model.config.d_model for queries in attending(model, size)))


def traffic(model: LLaDA, size: Size) -> int:
    """Bytes that a forward must move at least: every matrix once, and of the cache what is written and what is seen."""
    slots = size.written * len(model.blocks) * size.B * (size.Q + size.K)
    return sum(w.nbytes for w, _ in linears(model, size)) + slots * slot_width(model.config) * model.dtype.itemsize


def slot_width(config: Config) -> int:
    return 2 * config.kv_heads * config.head_width  # numbers in a slot of the cache, of one layer


def bare_products(model: LLaDA, size: Size) -> Callable[[], None]:
    """The matrix products of one forward and nothing else: no norms, rotations, softmax, activations or cache writes."""
    draw = lambda *shape: torch.randn(*shape, device=model.device, dtype=model.dtype)  # noqa: E731
    matrices = list(linears(model, size))
    x = {key: draw(size.B, *key) for key in {(rows, weight.shape[1]) for weight, rows in matrices}}
    c, counts = model.config, attending(model, size)
    q = {n: draw(size.B, c.n_heads, n, c.head_width) for n in counts}
    attention = {n: draw(size.B, c.n_heads, n, size.K) for n in counts}
    k = draw(size.B, c.n_heads, c.head_width, size.K)
    v = draw(size.B, c.n_heads, size.K, c.head_width)

    def run() -> None:
        for weight, rows in matrices:
            F.linear(x[rows, weight.shape[1]], weight)
        for n in counts:
            q[n] @ k
            attention[n] @ v

    return run


@functools.cache
def rates(device: torch.device) -> tuple[Callable, Callable, int, int]:
    """A copy and a product large enough to be limited by nothing else, with the bytes of the one and the operations of the other."""
    n = 8192
    source, square = torch.ones(2**30, dtype=torch.uint8, device=device), torch.ones(n, n, dtype=torch.bfloat16, device=device)
    target, product = torch.empty_like(source), torch.empty_like(square)
    return lambda: target.copy_(source), lambda: torch.mm(square, square, out=product), 2 * source.nbytes, 2 * n**3


def yardstick(model: LLaDA, size: Size) -> tuple[list[Callable[[], None]], Callable[..., float]]:
    """What to time beside a forward, and how its floor in seconds follows from these times."""
    if model.device.type != "cuda":
        return [bare_products(model, size)], lambda products: products
    copy, product, moved, computed = rates(model.device)
    shares = traffic(model, size) / moved, operations(model, size) / computed
    return [copy, product], lambda *times: max(share * seconds for share, seconds in zip(shares, times))


def alternate(calls: list[Callable], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of each call in each round, after one round that warms up; the calls take turns."""
    seconds = [[] for _ in calls]
    wait = getattr(torch, device.type).synchronize
    for round in range(rounds + 1):
        for call, times in zip(calls, seconds):
            began = time.perf_counter()
            call()
            wait()
            if round:
                times.append(time.perf_counter() - began)
    return seconds


# --- speed -------------------------------------------------------------------------------------------------------------------------------


def through_probabilities(logits: Tensor) -> Tensor:
    """Confidence as the originals compute it: float64 probabilities of the whole vocabulary, of which one is looked up."""
    return logits.double().softmax(-1).gather(-1, logits.argmax(-1, keepdim=True))


@dataclass(frozen=True)
class Cell:
    """One line of the table; times in ms, ratios the median of the rounds'."""

    shape: str
    cache: str
    batch: int
    rows: int  # that a forward computes, of all its canvases, on average over its layers
    slots: int  # that each of them sees
    forward: float
    floor: float
    ratio: float
    scores: float
    share: float  # scores / forward
    float64: float
    compiled: dict[str, float]  # under --compile: forward, its ratio, speed-up and scores
    counts: dict[str, float | int]  # under --compile: what the eager and the compiled forward allocate and call


def measure(model: LLaDA, shape: str, cache: str, batch: int, args: argparse.Namespace) -> tuple[Cell, Callable]:
    """Time one forward, its floor and its scores in turns; returns the forward, too, to profile."""
    forwards, scores = [], []
    for compile in (False, True)[: 1 + args.compile]:
        canvas, step = at_work(model, cache, batch, args.prompt_length, args.gen_length, args.block_length, compile)
        forwards.append(functools.partial(dllm.forward, canvas, step.window, step.at))
        scores.append(functools.partial(canvas.score, step.logits))
    size = size_of(canvas, step)
    tools, floor_of = yardstick(model, size)
    calls = [*forwards, *scores, functools.partial(through_probabilities, step.logits), *tools]
    seconds = alternate(calls, args.rounds, model.device)
    ours, scored, (wide, *timed) = seconds[: len(forwards)], seconds[len(forwards) : 2 * len(forwards)], seconds[2 * len(forwards) :]
    floor = [floor_of(*times) for times in zip(*timed)]
    ms = lambda times: statistics.median(times) * 1e3  # noqa: E731
    ratio = lambda times, others: statistics.median(a / b for a, b in zip(times, others))  # noqa: E731
    compiled, counts = {}, {}
    if args.compile:
        compiled = {"compiled": ms(ours[1]), "its ratio": ratio(ours[1], floor), "speed-up": ratio(*ours), "scores": ms(scored[1])}
        (mb, calls), (fast_mb, fast_calls) = (counted(forward, model.device) for forward in forwards)
        counts = {"MB": mb, "compiled MB": fast_mb, "calls": calls, "compiled calls": fast_calls}
    figures = ms(ours[0]), ms(floor), ratio(ours[0], floor), ms(scored[0]), ratio(scored[0], ours[0]), ms(wide)
    return Cell(shape, cache, batch, step.rows, size.K, *figures, compiled, counts), forwards[-1]


@torch.inference_mode()
def speed(args: argparse.Namespace) -> None:
    """One forward for each cache beside the floor of its arithmetic, and the scores beside the forward."""
    device, dtype = find_device(args.device), dtype_of(args)
    batches, caches = whole_numbers("batch", args.batch), chosen("cache", args.caches, CACHES)
    shapes = chosen("shape", args.shapes, SHAPES) if args.shapes else [name for name in SHAPES if name != "8b" or device.type != "cpu"]
    check_lengths(args.gen_length, args.block_length)
    length = args.prompt_length + args.gen_length
    for name in shapes:
        check_room(name, config_of(name, length), max(batches) * length, caches, device, dtype)
    use(args.threads)
    cells, profiles = [], []
    with tqdm(total=len(shapes) * len(caches) * len(batches), unit="cell", leave=False, disable=None) as bar:
        for name in shapes:
            model = random_model(config_of(name, length), device, dtype)
            for cache in caches:
                for batch in batches:
                    cell, forward = measure(model, name, cache, batch, args)
                    cells.append(cell)
                    if args.profile:
                        profiles.append((f"{name}, {cache}, batch {batch}", profile(forward, device)))
                    bar.update()
    if args.json:
        print(json.dumps({"settings": vars(args), "machine": about(model), "cells": [asdict(cell) for cell in cells]}))
        return
    print(about(model) + ".")
    print(
        f"Prompt {args.prompt_length}, gen_length {args.gen_length}, blocks of {args.block_length}. Median of {args.rounds} rounds; ms.\n"
    )
    print(speed_table(cells))
    if args.compile:
        print("\n" + counts_table(cells))
    for title, rows in profiles:
        print(f"\n{title}:\n\n{rows}")


def speed_table(cells: list[Cell]) -> str:
    header = ["shape", "cache", "batch", "rows", "slots", "forward", "floor", "ratio", "scores", "share", "float64", *cells[0].compiled]
    rows = []
    for c in cells:
        figures = [short(c.forward), short(c.floor), f"{c.ratio:.2f}", short(c.scores), f"{c.share:.1%}", short(c.float64)]
        rows.append([c.shape, c.cache, str(c.batch), str(c.rows), str(c.slots), *figures, *map(short, c.compiled.values())])
    return table(header, rows)


def counts_table(cells: list[Cell]) -> str:
    figures = lambda c: [short(count) if isinstance(count, float) else str(count) for count in c.counts.values()]  # noqa: E731
    return table(["shape", "cache", "batch", *cells[0].counts], [[c.shape, c.cache, str(c.batch), *figures(c)] for c in cells])


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def counted(call: Callable, device: torch.device) -> tuple[float, int]:
    """What holds on any machine of the kind: the megabytes that a call allocates, in all, and how many operators it calls or kernels it launches.

    On a CPU the fused kernels of compiled code are no operators and are not counted; on a GPU a recorded graph is one launch. Both are read
    from the trace: the profiler's own sums leave out what is freed in the operator that allocated it, and so all buffers of compiled code.
    """
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(profile_memory=True) as seen:
            call()
        seen.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    if device.type == "cpu":
        calls = [event for event in events if event["name"].startswith("aten::")]
    else:
        calls = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver") and "Launch" in event["name"]]
    return sum(max(0, event["args"]["Bytes"]) for event in events if event["name"] == "[memory]") / 1e6, len(calls)


def profile(call: Callable, device: torch.device, calls: int = 3, top: int = 12) -> str:
    """A table of the operators that take the most time themselves, without those that they call, for one call."""
    on_cpu = device.type != "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not on_cpu)) as found:
        for _ in range(calls):
            call()
    own = lambda event: event.self_cpu_time_total if on_cpu else event.self_device_time_total  # noqa: E731  in us
    events = sorted((event for event in found.key_averages() if own(event)), key=own, reverse=True)
    total = sum(map(own, events))
    line = lambda name, some: [  # noqa: E731
        name, f"{sum(e.count for e in some) / calls:.0f}", short(sum(map(own, some)) / calls / 1e3), f"{sum(map(own, some)) / total:.1%}"
    ]  # fmt: skip
    rows = [line(event.key, [event]) for event in events[:top]]
    return table(["operator", "calls", "ms", "share"], [*rows, line("the rest", events[top:]), line("all", events)])


# --- checks ------------------------------------------------------------------------------------------------------------------------------


def dtype_of(args: argparse.Namespace) -> torch.dtype:
    return DTYPES[args.dtype or ("float32" if find_device(args.device).type == "cpu" else "bfloat16")]


def config_of(name: str, length: int) -> Config:
    """The config of a shape, for sequences of this length and all that are shorter."""
    config = SHAPES[name] or load_config(TINY)
    return replace(config, max_sequence_length=max(length, config.max_sequence_length))


def chosen(what: str, text: str | None, among: dict) -> list[str]:
    names = text.split(",") if text else list(among)
    if unknown := [name for name in names if name not in among]:
        raise ValueError(f"unknown {what} {unknown[0]!r}: choose of {', '.join(among)}")
    return names


def whole_numbers(what: str, text: str) -> list[int]:
    if not all(part.isascii() and part.isdigit() and int(part) for part in text.split(",")):
        raise ValueError(f"{what} is {text!r}, expected whole numbers of at least 1, such as 1,4")
    return [int(part) for part in text.split(",")]


def check_lengths(gen_length: int, block_length: int) -> None:
    """Two blocks of three tokens are the least: one to fill the cache with, one to use it in, and three forwards for each."""
    plan(CACHES["none"], {"gen_length": gen_length, "block_length": block_length})
    if gen_length < 2 * block_length or block_length < 3:
        raise ValueError(f"gen_length is {gen_length} and block_length {block_length}, expected two blocks of at least 3 tokens")


def check_room(name: str, config: Config, slots: int, caches: list[str], device: torch.device, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in LLaDA(config).parameters())
    features = config.d_model * any(traits(CACHES[cache].view).features for cache in caches)
    needed = (weights + slots * config.n_layers * (slot_width(config) + features)) * dtype.itemsize
    check_memory(f"the weights and cache of shape {name} in {str(dtype)[6:]}", needed, device)


def use(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


# --- grow --------------------------------------------------------------------------------------------------------------------------------

TERMS = ("a forward", "a row of a layer", "a row that sees a slot, of a layer")


class Law(NamedTuple):
    """Seconds = the sum of constants times TERMS, as fitted to measurements, and how far these are from it."""

    constants: list[float]  # seconds
    r2: float
    errors: list[float]  # of each measurement, (law - measured) / measured


def terms(size: Size, layers: int) -> list[float]:
    """What a forward's time should be made of: itself, rows times layers, and for each of these the slots they attend to."""
    rows = size.B * (layers * size.Q if size.renewed is None else size.Q + (layers - 1) * size.renewed)
    return [1.0, rows, rows * size.K]


def fit(x: list[list[float]], seconds: list[float]) -> Law:
    """The constants with the least squares of relative errors: of absolute ones, the few longest forwards would decide alone."""
    x, measured = torch.tensor(x, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    scale = x.amax(0)
    constants = torch.linalg.lstsq(x / scale / measured[:, None], torch.ones_like(measured)[:, None]).solution[:, 0] / scale
    law = x @ constants
    r2 = 1 - ((law - measured) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
    return Law(constants.tolist(), r2.item(), ((law - measured) / measured).tolist())


def held(canvas: Canvas) -> int:
    """Bytes of memory behind the keys and values of a decode."""
    return sum(slots.untyped_storage().nbytes() for slots in (canvas.cache.k, canvas.cache.v)) if canvas.cache else 0


@torch.inference_mode()
def grow(args: argparse.Namespace) -> None:
    """How a forward's time and its cache grow with the answer and the prompt, for each cache, beside the law they should follow."""
    device, dtype = find_device(args.device), dtype_of(args)
    caches = chosen("cache", args.caches, CACHES)
    shape = args.shape
    require(shape in SHAPES, "shape", shape, f"one of {', '.join(SHAPES)}")
    answers, prompts = whole_numbers("gen_lengths", args.gen_lengths), whole_numbers("prompt_lengths", args.prompt_lengths)
    lengths = list(dict.fromkeys([(prompts[0], answer) for answer in answers] + [(prompt, answers[0]) for prompt in prompts]))
    if len(lengths) * len(caches) <= len(TERMS):
        raise ValueError(f"{len(lengths) * len(caches)} forwards do not determine {len(TERMS)} constants: give more lengths or caches")
    for answer in answers:
        check_lengths(answer, args.block_length)
    longest = max(prompt + answer for prompt, answer in lengths)
    config = config_of(shape, longest)
    check_room(shape, config, args.batch_size * longest, caches, device, dtype)
    use(args.threads)
    model = random_model(config, device, dtype)
    found = []  # (cache, prompt, answer, size, seconds, bytes of the cache)
    with tqdm(total=len(lengths) * len(caches), unit="forward", leave=False, disable=None) as bar:
        for prompt, answer in lengths:
            works = [at_work(model, cache, args.batch_size, prompt, answer, args.block_length) for cache in caches]
            calls = [functools.partial(dllm.forward, canvas, step.window, step.at) for canvas, step in works]
            for cache, work, seconds in zip(caches, works, alternate(calls, args.rounds, device)):
                found.append((cache, prompt, answer, size_of(*work), min(seconds), held(work[0])))
                bar.update()
    law = fit([terms(size, config.n_layers) for *_, size, _, _ in found], [seconds for *_, seconds, _ in found])
    if args.json:
        names = ("cache", "prompt_length", "gen_length", "size", "seconds", "cache_bytes")
        lines = [dict(zip(names, line)) | {"size": line[3]._asdict(), "error": error} for line, error in zip(found, law.errors)]
        print(json.dumps({"settings": vars(args), "machine": about(model), "law": law._asdict(), "forwards": lines}))
        return
    print(about(model) + ".")
    print(
        f"Shape {shape}, batch {args.batch_size}, blocks of {args.block_length}. Least of {args.rounds} rounds; ms, in brackets the law's.\n"
    )
    rows = []
    for prompt, answer in lengths:
        line = [(f, error) for f, error in zip(found, law.errors) if f[1:3] == (prompt, answer)]
        cells = [f"{short(f[4] * 1e3)} ({short(f[4] * 1e3 * (1 + error))})" for f, error in line]
        computed = args.batch_size * (prompt + answer) * config.n_layers * slot_width(config) * dtype.itemsize
        rows.append([str(prompt), str(answer), *cells, f"{computed / 1e6:.2f}", f"{max(f[5] for f, _ in line) / 1e6:.2f}"])
    print(table(["prompt", "answer", *caches, "cache MB", "held"], rows))
    print("\n" + table(["law", "us"], [[name, f"{constant * 1e6:.3g}"] for name, constant in zip(TERMS, law.constants)]))
    worst = {cache: max(abs(error) for f, error in zip(found, law.errors) if f[0] == cache) for cache in caches}
    print(f"\nR^2 {law.r2:.4f}; largest relative error {', '.join(f'{cache} {error:.0%}' for cache, error in worst.items())}.")
