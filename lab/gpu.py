"""Whether a GPU does what is claimed of it: `python -m lab.bench gpu`, a check after the other.

Each check yields what it found, as a ratio or a count, beside the most that passes. No GPU has run
it so far: without one, what can be is run on the pretended device (pretended.py).

Left out on purpose: ties of bfloat16, whole decodes of drafts, rows that see nothing, two GPUs.
"""

import functools
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import attention
from compiled import Compiled
from dllm import finish, generate, prepare, stream
from lab.files import write
from lab.pretended import on_device, pretended, unwrap, waits, wrap
from lab.report import about
from lab.speed import SHAPES, alternate, at_work, checked_shapes, measure, random_model
from load_weights import find_device
from model import Config, Int8Linear, Linear, LLaDA
from strategies import STRATEGIES

SMALL = Config(32, 2, 4, 64, 40, 39, 38)
PROMPTS = [[(3 * row + 7 * i) % 37 for i in range(5 + 2 * row)] for row in range(5)]
SETTINGS = {"gen_length": 16, "block_length": 8}
# what some cannot do without, on a random model
OWN = {
    "ar": {"block_length": 1},
    "wedlm": {"block_length": 1},
    "swift": {"skip": "0"},
    "prophet": {"block_length": 16, "inner": 8},
    "apd": {"block_length": 1, "guide": 1},
    "guided": {"block_length": 1, "guide": 1},
    "prism": {"n": 4, "k": 2, "interval": 1},
}
# the most waits of a forward, the first left out; of all others one
WAITS = {"freedave": 2, "spiffy": 2, "swift": 2, "prism": 3, "s2d2": 2}
ASKED = {"prompt_length": 64, "gen_length": 128, "block_length": 32, "rounds": 9, "batch": [1, 16]}
LARGE = Namespace(**ASKED, shapes="8b", caches="none,dual", compile=True, theirs=False)


class Found(NamedTuple):
    what: str
    value: float
    most: float
    least: float = 0.0


def small(device: torch.device | None) -> LLaDA:
    """The same random weights each time; on the pretended device, where device is None."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = random_model(SMALL, torch.device("cpu"), torch.float32)
    return on_device(model) if device is None else model.to(device)


@functools.cache
def large(device: torch.device) -> LLaDA:
    """LLaDA-8B's shape; ValueError where there is no room."""
    config = checked_shapes(LARGE, device, torch.bfloat16)["8b"]
    return random_model(config, device, torch.bfloat16)


def counted(name: str, prompts: list, device, told=lambda: 0) -> tuple[list, list[int]]:
    """A decode's tokens, and what was told of each of its forwards."""
    model, each = small(device), []
    own = SETTINGS | OWN.get(name, {}) | {"compile": False}
    own |= {"guide": small(device)} if "guide" in own else {}

    def steps(canvas) -> Iterator:
        for step in stream(canvas):
            each.append(told())
            yield step
            told()

    canvas = prepare(model, prompts, name, own)
    told()
    return unwrap(finish(canvas, steps(canvas)).tokens).tolist(), each


@contextmanager
def reported(device: torch.device | None) -> Iterator[Callable[[], int]]:
    """What tells how often the host has waited since it was last asked: by warnings of CUDA, or on
    the pretended device."""

    def told() -> int:
        count = waits.total() + sum("synchroniz" in str(w.message) for w in caught)
        waits.clear(), caught.clear()
        return count

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device is None:
            with pretended():
                yield told
        else:
            torch.cuda.set_sync_debug_mode("warn")
            yield told
            torch.cuda.set_sync_debug_mode("default")


def able() -> list[str]:
    """The strategies that a random model can run: learn2pd's filter is made for one model."""
    files = [name for name in STRATEGIES if STRATEGIES[name].__module__.startswith("strategies.")]
    return [name for name in files if name != "learn2pd"]


# --- the checks, in their order ------------------------------------------------------------------


def tokens(device: torch.device | None) -> Iterator[Found]:
    """Every strategy, alone and in an uneven batch, float32: the CPU's tokens."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for name in able():
        for prompts in (PROMPTS[:1], PROMPTS):
            with pretended() if device is None else nullcontext():  # both see the same operators
                ours = counted(name, prompts, device)[0]
                wrong = sum(a != b for a, b in zip(ours, counted(name, prompts, CPU)[0]))
            yield Found(f"{name}, batch {len(prompts)}: rows unlike the CPU's", wrong, 0)


def kernel(device: torch.device) -> Iterator[Found]:
    """Attention's error beside what may be, and its time beside that of the fastest kernel."""
    H, D, dtype, known = SHAPES["8b"].n_heads, 128, torch.bfloat16, SDPBackend
    for Q, K in ((32, 192), (64, 192), (128, 1056), (256, 1056)):
        q, k, v = (torch.randn(2, H, n, D, device=device, dtype=dtype) for n in (Q, K, K))
        mask = torch.rand(1, 1, Q, K, device=device) > 0.5
        mask[..., 0] = True
        attention.measured((2, 1, Q, K), (H, H, D), dtype, device)
        far = attention.error(q, k, v, mask) / attention.ERROR[dtype]
        yield Found(f"attention of {Q} x {K}: error over what may be", far, 1)
        calls = [partial(attention.attend, q, k, v, mask)]
        for backend in (known.EFFICIENT_ATTENTION, known.CUDNN_ATTENTION, known.MATH):
            try:
                call = partial(sdpa_kernel(backend)(F.scaled_dot_product_attention), q, k, v, mask)
                call()
                calls.append(call)
            except RuntimeError:  # one that this GPU has not
                continue
        ours, *others = alternate(calls, 9, device).median(1).values.tolist()
        yield Found(f"attention of {Q} x {K}: time over the fastest", ours / min(others), 1.3)


def again(device: torch.device) -> Iterator[Found]:
    """Three rounds of other lengths and strategies: nothing new after the first."""
    model, seen = small(device), []
    for _ in range(3):
        names = [name for name in ("fast-dllm", "llada", "d2f") if name in STRATEGIES]
        each = [(name, prompt) for name in names for prompt in PROMPTS[:2]]
        made = [generate(model, p, s, **SETTINGS, compile=True).tokens.tolist() for s, p in each]
        seen.append((made, len(model.fast.programs), torch.cuda.memory_allocated(device)))
    (first, programs, _), (second, later, before), (third, _, after) = seen
    yield Found("rounds whose tokens differ", (first != second) + (first != third), 0)
    yield Found("programs compiled in the second round", later - programs, 0)
    yield Found("memory after the third round over the second", after / before, 1.01)


def controls(device: torch.device) -> Iterator[Found]:
    """What must be noticed: a wait in a compiled forward, and a slot that is not seen."""
    model, right = small(device), counted("llada", PROMPTS, device)[0]
    forward = model.blocks[0].forward
    waiting = lambda x, *more: forward(x * (1 + 0 * x.sum().item()), *more)
    model.blocks[0].forward = waiting
    model.fast = Compiled(model)
    generate(model, PROMPTS, "llada", **SETTINGS, compile=True)
    yield Found("a wait in the forward: told, and the decode went on", model.fast.broken, 1, 1)
    canvas = prepare(small(device), PROMPTS, "llada", SETTINGS | {"compile": False})
    canvas.start += 2
    wrong = sum(a != b for a, b in zip(finish(canvas, stream(canvas)).tokens.tolist(), right))
    yield Found("shifted slots: rows that changed", wrong, len(PROMPTS), 1)


def speed(device: torch.device) -> Iterator[Found]:
    """LLaDA-8B's shape, compiled, beside its floor and beside the eager forward."""
    for batch, most in ((1, 1.25), (16, 1.35)):
        for cache in ("none", "dual"):
            row, what = measure(large(device), cache, batch, LARGE), f"8b, {cache}, batch {batch}"
            yield Found(f"{what}: compiled over floor", row["its ratio"], most)
            yield Found(f"{what}: scores over forward", row["its scores"] / row["compiled"], 0.02)
            if batch == 1:
                yield Found(f"{what}: compiled over eager", 1 / row["speed-up"], 0.6)


def whole(device: torch.device) -> Iterator[Found]:
    """A decode, every forward of which computes the same, beside as many forwards."""
    model, prompt = large(device), [[1] * LARGE.prompt_length]
    canvas, step = at_work(model, "none", 1, LARGE, compile=True)
    one = partial(canvas.forward, step.window, step.at)
    own = {"gen_length": 128, "block_length": 32, "eos": "fill", "compile": True}
    runs = [generate(model, prompt, "llada", **own) for _ in range(2)]  # the first compiles
    ms = alternate([one], 9, device).median().item()
    yield Found("decode over its forwards", runs[1].seconds * 1e3 / (runs[1].nfe * ms), 1.12)


def waiting(device: torch.device | None) -> Iterator[Found]:
    """How often the host waits for the device in a forward."""
    with reported(device) as told:
        one = wrap(torch.ones(())) if device is None else torch.ones((), device=device)
        told(), one.item()
        yield Found("a value that is asked for: waits", told(), 1, 1)
        for name in able():
            most = max(counted(name, PROMPTS[:3], device, told)[1][1:], default=0)
            yield Found(f"{name}: waits of a forward", most, WAITS.get(name, 1))


def memory(device: torch.device) -> Iterator[Found]:
    """What a decode takes at most, beside what was estimated before it."""
    model, own = large(device), {"gen_length": 128, "block_length": 32, "compile": True}
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with patch("dllm.check_memory") as estimate:
        generate(model, [[1] * 64] * 16, "llada", **own)
    peak = torch.cuda.max_memory_allocated(device) - before
    yield Found("peak memory over the estimate", peak / estimate.call_args[0][1], 1.1, 0.8)


def int8(device: torch.device) -> Iterator[Found]:
    """Weights of 8 bits: the time beside bfloat16's, and what they take. It changes the model."""
    model = large(device)
    plain = measure(model, "dual", 1, LARGE)["compiled"]
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear):
            model.set_submodule(name, Int8Linear(module.weight))
    vars(model).pop("fast", None)
    yield Found("int8 over bfloat16", measure(model, "dual", 1, LARGE)["compiled"] / plain, 1.1)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    yield Found("int8: GB of weights", held / 1e9, 10)


CPU = torch.device("cpu")
CHECKS = (tokens, kernel, again, controls, speed, whole, waiting, memory, int8)
PRETENDED = (tokens, waiting)


def gpu(args: Namespace) -> None:
    """The acceptance of a GPU, stopping at the first check that fails; without one, what can be."""
    device = find_device(args.device)
    here = device.type == "cuda"
    if args.device and not here:
        raise ValueError(f"device is {args.device!r}, expected cuda or cuda:1, or none at all")
    if here:
        versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        write(f"{torch.cuda.get_device_name(device)}, {versions}; {about(device, torch.bfloat16)}")
        names = [kernels[0].name for kernels in (attention.MASKED, attention.KERNELS)]
        write(f"attention with a mask: {names[0]}, without: {names[1]}")
    else:
        write(f"There is no CUDA here (torch {torch.__version__}): on the pretended device only.")
    for check in CHECKS if here else PRETENDED:
        for found in check(device if here else None):
            passed = found.least <= found.value <= found.most  # not a NaN
            limits = f"at most {found.most:g}" + f", at least {found.least:g}" * bool(found.least)
            verdict = "ok" if passed else "FAILED"
            write(f"{verdict:6} {check.__name__}: {found.what} {found.value:.3g} ({limits})")
            if not passed:
                sys.exit(1)
