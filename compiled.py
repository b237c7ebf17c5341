"""The same forward under torch.compile: static shapes (padding.py), one program for all layers.

model.py stays the definition: what runs here is its `forward`, with its blocks compiled. Left out
on purpose: CUDA graphs (a large layer takes longer than its launches), layers that a strategy runs
in a way of its own, models that are split over processes.

Letters: as in model.py; a padded size is written with a p, as in Bp, Qp.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

import attention
import kernels
from model import Cache, LLaDA, Pass
from padding import Padded, alike, padded

# programs of one function that torch.compile may keep: by default it stops at 8
LIMITS = {"recompile_limit": 256, "accumulated_recompile_limit": 256}


def layer(block: nn.Module, *arguments) -> Tensor:
    """What is compiled. The weights are arguments of the program, so that it serves every layer;
    the last, which has fewer rows, has its own."""
    return block(*arguments)


class Compiled:
    """A model whose forwards and scores are compiled; to the decoder it is the model.

    It says on stderr how long each program took to compile; `clock` leaves that out. Where nothing
    can be compiled the same runs eagerly, after one line.
    """

    # over the blocks below; all else is the model's
    forward, indices = LLaDA.forward, LLaDA.indices

    def __init__(self, model: LLaDA, compile: Callable = torch.compile):
        self.model, self.broken, self.compiling = model, False, 0.0
        fast = compile(layer, fullgraph=True, dynamic=False)
        self.blocks = [partial(fast, block) for block in getattr(model, "blocks", ())]
        parts = kernels.surest, kernels.entropy  # of the scores
        self.fast = {function: compile(function, dynamic=True) for function in parts}
        self.programs: set[str] = set()  # what was compiled
        self.last = None, Pass(), None  # what was asked for before, and what it is padded to

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def clock(self) -> float:
        """Seconds, those left out that were spent on compiling."""
        return time.perf_counter() - self.compiling

    def new_cache(self, batch: int, slots: int) -> Cache:
        return Padded(self.model, batch, slots)

    def score(self, *given) -> kernels.Scores:
        """As kernels.score; on a CPU eagerly: there it takes less time (docs/speed.md)."""
        run = None if given[0].device.type == "cpu" else self.fused
        return kernels.score(*given, run=run)

    def fused(self, function: Callable, z: Tensor, *more: Tensor):
        rows = "one row" if len(z) == 1 else "rows"  # which torch.compile takes for another shape
        what = f"{function.__name__} of {rows} of {z.shape[1]} words in {str(z.dtype)[6:]}"
        return self.run(what, partial(self.fast[function], z, *more), partial(function, z, *more))

    def __call__(self, ids: Tensor, at: Pass = Pass(), cache=None, start=None, added=None):
        """As LLaDA.forward."""
        if at.layer is not None:  # eagerly, on the rows that are somebody's
            rows = cache and cache.each(lambda tensor: tensor[:, : len(ids)])
            return self.model(ids, at, rows, start, added)
        shape = *ids.shape, None if cache is None else cache.k.shape[3]
        if self.last[0] != shape or not alike(self.last[1], at):  # but for a block's first, it is
            self.last = shape, at, padded(self.model, *shape, at)
        lines, places, pad, wanted = self.last[2]
        each = lambda t: t if t is None else t[lines[:, None], places]
        pad = pad._replace(own=each(at.own))  # [Bp, Qp]
        start = ids.new_zeros(len(lines)) if start is None else start[lines]
        given = each(ids), pad, cache, start, each(added)
        sizes = len(lines), len(places), pad.mask.shape[-1], len(pad.rows)
        what = "forwards of {} x {} positions over {} slots, {} with logits".format(*sizes)
        what += ", a mask for each row" * (pad.mask.dim() > 2) + ", uncached" * (cache is None)
        what += ", some kept" * (at.own is not None) + ", on expectations" * (added is not None)
        ready = partial(attention.settle, self.model, len(lines), pad.mask)
        fast, eager = partial(self.forward, *given), partial(self.model, *given)
        logits = self.run(what, fast, eager, ready)
        return logits[: len(ids), :wanted]

    def run(self, what: str, fast: Callable, eager: Callable, ready: Callable = lambda: None):
        """Call fast(), or eager() where nothing can be compiled.

        The first call of its kind, after ready(), compiles: it is told, kept off the clock, and
        made again, since its own time cannot be told from that.
        """
        if what not in self.programs and not self.broken:
            began = time.perf_counter()
            ready()
            trouble = first(fast)
            self.programs.add(what)
            self.broken = trouble is not None
            self.compiling += (spent := time.perf_counter() - began)
            if self.broken or spent > 0.1:  # less is the call itself: another model had compiled it
                print(trouble or f"compiled {what} in {spent:.1f} s", file=sys.stderr)
        return (eager if self.broken else fast)()


def first(call: Callable) -> str | None:
    """Call what compiles; again, in a new cache on disk, if that fails: a process that was ended
    leaves half a library in the old one. Returns why neither can be."""
    from torch._inductor.utils import fresh_cache  # takes a second to load

    for cache in (nullcontext(), fresh_cache(delete=False)):
        try:
            with cache, torch.compiler.config.patch(**LIMITS):
                call()
            return None
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many types; what is run again writes the same
            reason = str(error).strip().splitlines()[0]
    return f"cannot be compiled, staying eager: {reason}"


def compile_model(model: LLaDA) -> tuple[LLaDA | Compiled, Callable, Callable[[], float]]:
    """What a decode uses of a model that is to be compiled: its forward, scores and clock."""
    if "fast" not in vars(model):  # kept beside the model: the next decode finds its programs
        vars(model)["fast"] = Compiled(model)
    step = vars(model)["fast"]
    whole = isinstance(model, LLaDA) and not hasattr(model.ff_out.weight, "device_mesh")
    return (step if whole else model), step.score, step.clock
