"""The same forward under torch.compile: arguments padded to a few static shapes, one program for
all layers, on CUDA one graph a forward.

model.py stays the definition: what runs here is its `forward`, with its blocks compiled. Padding
repeats what is there already: the last position of the query writes the same keys and values once
more, the last row of the batch is computed again, and both are cut off the logits. So nothing has
to be hidden but the slots behind the canvas.

Left out on purpose: layers that a strategy runs in its own way, which run eagerly, on the same
cache; models that are split over processes; a second model that guides.

Letters: as in model.py; a padded size is written with a p, as in Bp, Qp.
"""

import copy
import functools
import sys
import time
import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import kernels
from model import Cache, LLaDA, Pass, Slots

SLOTS = 64  # a cache has a multiple of so many: prompts of about the same length share programs
PROGRAMS = 256  # of one function that torch.compile may keep; by default it stops at 8
FEW = 16  # positions, if more than one, are padded to no less: so few cost hardly more than one


def size(n: int) -> int:
    """What n rows are padded to, the next of 1, 2, 3, 4, 6, 8, 12, 16, ...: less than a third."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power


def positions(n: int) -> int:
    """The same of positions, which cost more: 1, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160,
    ...: above 32 less than a fifth is padding."""
    step = max(8, (1 << (n - 1).bit_length()) // 8)
    return 1 if n == 1 else max(FEW, -(-n // step) * step)


def whole_slots(n: int) -> int:
    return -(-n // SLOTS) * SLOTS


def memory_of(batch: int, slots: int) -> tuple[int, int]:
    """Rows and slots of the memory behind a cache of so many."""
    return size(batch), whole_slots(slots)


def many_programs():
    """A context in which torch.compile keeps PROGRAMS of a function."""
    return torch.compiler.config.patch(
        recompile_limit=PROGRAMS, accumulated_recompile_limit=PROGRAMS
    )


class Padded(Cache):
    """A cache in memory of a few sizes, on which compiled forwards work.

    Its keys and values are the first B rows and S slots of `memory`.
    """

    def __init__(self, memory: Cache, lend: Callable[[int], Cache], batch: int, slots: int):
        self.memory, self.lend, self.slots = memory, lend, slots
        self.cut(batch)

    def cut(self, batch: int) -> None:
        vars(self).update(corner(self.memory, batch, self.slots).tensors())

    def fill(self, other: Cache) -> None:
        """Take over the tensors of another: keys and values by copying, what a system has added."""
        self.k.copy_(other.k)
        self.v.copy_(other.v)
        vars(self).update({**other.tensors(), "k": self.k, "v": self.v})

    def keep(self, batch: Tensor) -> None:
        """As in Cache, but in place: the memory stays, and with it what was compiled for it."""
        rows = super().pick(batch)
        self.cut(len(batch))
        self.fill(rows)

    def pick(self, batch: Tensor) -> Cache:
        other = Padded(self.lend(len(batch)), self.lend, len(batch), self.slots)
        other.fill(super().pick(batch))
        return other


def corner(cache: Cache, batch: int, slots: int) -> Cache:
    """The first rows and slots of a cache, as views."""
    part = copy.copy(cache)
    part.k, part.v = cache.k[:, :batch, :, :slots], cache.v[:, :batch, :, :slots]
    return part


def layer(block: nn.Module, *arguments) -> Tensor:
    """What is compiled. The weights are arguments of the program, so that it serves every layer;
    the last, which has fewer rows, has its own."""
    return block(*arguments)


class Compiled:
    """A model whose forwards are compiled; to the decoder it is the model.

    It says on stderr how long each program took to compile; `clock` leaves that out. What cannot
    be compiled runs eagerly, after one line.
    """

    # over the blocks below; all else is the model's
    forward, indices = LLaDA.forward, LLaDA.indices

    def __init__(
        self, model: LLaDA, score: Callable = kernels.score, compile: Callable = torch.compile
    ):
        fast = compile(layer, fullgraph=True, dynamic=False)
        self.model, self.blocks = model, [partial(fast, block) for block in model.blocks]
        self.eager_score, self.fast_score = kernels.score, score
        self.programs: set[tuple] = set()  # what was compiled
        self.graphs: dict[tuple, Graph] = {}  # of forwards without a cache
        self.free: dict[tuple, list[Cache]] = {}  # memory that no cache uses
        self.compiling, self.broken = 0.0, False

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def clock(self) -> float:
        """Seconds, those left out that were spent on compiling."""
        return time.perf_counter() - self.compiling

    def new_cache(self, batch: int, slots: int) -> Padded:
        lend = partial(self.lend, slots)
        return Padded(lend(batch), lend, batch, slots)

    def lend(self, slots: int, batch: int) -> Cache:
        """Memory for a cache, which comes back when the cache is gone.

        Used again, it keeps its address, which a graph has fixed.
        """
        shape = memory_of(batch, slots)
        if not any(shape[1] == other for _, other in self.free):
            self.free.clear()  # or memory for every length there ever was would pile up
        free = self.free.setdefault(shape, [])
        memory = free.pop() if free else self.model.new_cache(*shape)
        memory.graphs = getattr(memory, "graphs", {})
        lent = copy.copy(memory)
        weakref.finalize(lent, free.append, memory).atexit = False
        return lent

    def score(self, *given) -> kernels.Scores:
        """As kernels.score."""
        key = ("scores", given[0].shape[-1])
        return self.run(key, partial(self.fast_score, *given), partial(self.eager_score, *given))

    def __call__(self, ids: Tensor, at: Pass = Pass(), cache=None, start=None, added=None):
        """As LLaDA.forward."""
        eager = partial(self.model, ids, at, cache, start, added)
        if at.layer is not None:
            return eager()
        B, Q = ids.shape
        wanted = self.indices(slice(0, Q))[at.rows]  # [R]
        room = whole_slots(Q) if cache is None else cache.memory.k.shape[3]
        Bp, Qp, Rp = size(B), min(positions(Q), room), positions(len(wanted))
        lines, places = self.padded(B, Bp), self.padded(Q, Qp)
        each = lambda t: t if t is None else t[lines[:, None], places]
        room = Qp if cache is None else room
        seen = slice(0, Q if cache is None else cache.slots) if at.visible is None else at.visible
        allowed = self.allowed(at.mask, seen, lines, places, room)
        given = {
            "ids": each(ids),  # [Bp, Qp]
            "query": self.indices(slice(0, Q) if at.query is None else at.query)[places],  # [Qp]
            "mask": allowed,  # [Qp, K], or [Bp, 1, Qp, K]
            "rows": wanted[self.padded(len(wanted), Rp)],  # [Rp]
            "start": ids.new_zeros(Bp) if start is None else start[lines],
            "own": each(at.own),  # [Bp, Qp]
            "added": each(added),  # [Bp, Qp, C]
        }
        forward, graphs = partial(self.forwarded, None, None, at.skip), self.graphs
        if cache is not None:
            graphs = cache.memory.graphs
            memory = corner(cache.memory, Bp, room)
            forward = partial(self.forwarded, slice(0, room), memory, at.skip)
        key = (Bp, Qp, room, Rp, allowed.dim(), at.own is None, cache is None)
        if ids.is_cuda:
            forward = partial(replay, graphs, (*key, added is None, *at.skip), forward)
        return self.run(key, partial(forward, **given), eager)[:B, : len(wanted)]

    def allowed(self, mask: Tensor | None, seen: Slots, lines, places, room: int) -> Tensor:
        """Which slot of the memory each padded position may see, bool [Qp, K] or [Bp, 1, Qp, K].

        seen: what the rows see, of which `mask` says more
        """
        allowed = torch.zeros(len(places), room, dtype=torch.bool, device=places.device)
        if mask is None:
            allowed[:, seen] = True
        elif mask.dim() == 2:
            allowed[:, seen] = mask[places]
        else:
            allowed = allowed.repeat(len(lines), 1, 1, 1)
            allowed[..., seen] = mask[lines][..., places, :]
        return allowed

    def forwarded(self, visible: Slots | None, cache: Cache | None, skip, /, **given) -> Tensor:
        """LLaDA.forward, with the tensors that differ from call to call by name: a graph has a
        place for each."""
        ids, start, added = (given.pop(name) for name in ("ids", "start", "added"))
        return self.forward(ids, Pass(visible=visible, skip=skip, **given), cache, start, added)

    def padded(self, n: int, to: int) -> Tensor:
        """Which of n things stand in a padded row, int64 [to]: all of them, then the last again and
        again."""
        return torch.arange(to, device=self.device).clamp(max=n - 1)

    def run(self, key: tuple, fast: Callable, eager: Callable):
        """Call fast(), or eager() where nothing can be compiled.

        The first call of a key compiles: it is reported, kept off the clock, and made again, since
        its own time cannot be told from that.
        """
        if not self.broken and key not in self.programs:
            began = time.perf_counter()
            try:
                with many_programs():
                    fast()
                self.programs.add(key)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of many types; what is run again writes the same
                self.broken = True
                reason = str(error).strip().splitlines()[0]
                print(f"cannot be compiled, staying eager: {reason}", file=sys.stderr)
            spent = time.perf_counter() - began
            self.compiling += spent
            if not self.broken:
                name = "the scores"
                if key[0] != "scores":
                    name = "forwards of {} x {} positions over {} slots".format(*key)
                report(name, spent)
        return (eager if self.broken else fast)()


def report(what: str, seconds: float) -> None:
    if seconds > 0.1:  # less is the call itself: another model had compiled this
        print(f"compiled {what} in {seconds:.1f} s", file=sys.stderr)


class Graph:
    """A forward recorded on CUDA, to be launched as one: operations and operands' addresses."""

    def __init__(self, forward: Callable, given: dict[str, Tensor | None]):
        self.given = {name: t if t is None else t.clone() for name, t in given.items()}
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = forward(**self.given)


def replay(graphs: dict[tuple, Graph], key: tuple, forward: Callable, **given) -> Tensor:
    """Launch the recorded forward on these arguments.

    The first time run it as it is, which compiles, record it, and compare the two.
    """
    if key not in graphs:
        logits = forward(**given)
        graph = Graph(forward, given)
        graph.graph.replay()
        close = 0.02 * logits.abs().max().item()
        torch.testing.assert_close(graph.logits, logits, rtol=0, atol=close)  # or stay eager
        graphs[key] = graph
        return logits
    graph = graphs[key]
    for name, tensor in given.items():
        if tensor is not None:
            graph.given[name].copy_(tensor)
    graph.graph.replay()
    return graph.logits.clone()  # the next replay overwrites them


@functools.cache
def compile_score(device: torch.device) -> Callable:
    """kernels.score under torch.compile, or as it is, after one line, where nothing can compile."""
    functions = kernels.surest, kernels.entropy
    fast = {function: torch.compile(function, dynamic=True) for function in functions}
    run = lambda function, *tensors: fast[function](*tensors)
    score = partial(kernels.score, run=run)

    began = time.perf_counter()
    try:
        with torch.inference_mode():  # as decoding calls it: another mode would compile anew
            score(torch.zeros(2, 4, 16, device=device)).entropy
    except Exception as error:  # a missing C++ compiler or Triton surfaces as one of many types
        reason = str(error).strip().splitlines()[0]
        print(f"torch.compile is not available here, staying eager: {reason}", file=sys.stderr)
        return kernels.score
    report("the scores", time.perf_counter() - began)
    return score


def compile_model(model: LLaDA) -> tuple[LLaDA | Compiled, Callable, Callable[[], float]]:
    """What a decode uses of a model that is to be compiled: its forward, scores and clock."""
    score = compile_score(model.device)
    # not split over processes
    whole = isinstance(model, LLaDA) and not hasattr(model.ff_out.weight, "device_mesh")
    if score is kernels.score or not whole:
        return model, score, time.perf_counter
    if "fast" not in vars(model):  # kept beside the model: the next decode finds its programs
        vars(model)["fast"] = Compiled(model, score)
    step = vars(model)["fast"]
    return step, step.score, step.clock
