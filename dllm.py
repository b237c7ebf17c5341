"""Diffusion-LLM decoding: every strategy is a schedule, a view and a commit rule on one `loop`.

    schedule  which blocks are open now
    view      which positions one forward recomputes, and which cache slots they see
    rule      which of the scored tokens to write

The canvas is the prompt followed by `gen_length` masks. strategies/ holds the systems, a file each,
and what their parts are made of. Left out on purpose: the network (model.py), scores from logits
(kernels.py), files (load_weights.py), likelihoods (lab/likelihood.py).

Letters: B batch, b its unfinished rows, S canvas, P prompt, L block length, n blocks in the window
(or on the canvas), Q positions computed in one forward, V vocabulary.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Annotated

import torch
from torch import Tensor

import kernels
import strategies
from checks import (
    brief,
    called,
    check_choice,
    check_ids,
    check_iterator,
    check_pass,
    check_shape,
    require,
)
from compiled import compile_model
from kernels import Scores
from load_weights import check_memory
from model import Cache, Config, Int8Linear, LLaDA, Pass
from padding import memory_of
from strategies import Count, EosName, Strategy, Window, choose, options, scored, trait, windows

DEFAULT = "fast-dllm"  # the strategy where none is named
SURE = 1e4  # a logit beside which no other counts
FAULTS = (  # of a forward, the likeliest cause of the others first
    "the logits are NaN or infinite: try --dtype bfloat16 or float32",
    "a rule wrote what is no token id",
    "a forward wrote nothing where it must",
)
ENDLESS = 100  # forwards a token: none of the systems comes near, a rule of one's own may

# --- the loop -------------------------------------------------------------------------------------


def generate(model: LLaDA, prompt, strategy=DEFAULT, template=None, **settings) -> "Result":
    """Decode to the end and return the canvas with its counters. Arguments as for `decode`."""
    canvas = prepare(model, prompt, strategy, settings, template)
    own = canvas.strategy  # of which nobody sees the steps
    canvas.narrow = trait(own.rule, "masks_only") and not (own.forward or own.choose or own.search)
    canvas.narrow &= not canvas.compiled and canvas.x.device.type == "cpu"
    return finish(canvas, stream(canvas))


def decode(model: LLaDA, prompt, strategy=DEFAULT, template=None, **settings):
    """Check everything, then return an iterator that yields a Step for each forward.

    prompt    int64 [B, P], or a list of token ids, or a list of such lists of any lengths, which
              are padded on the left
    strategy  a name in STRATEGIES, or a Strategy
    template  an answer with holes, which are mask tokens: in the forms of `prompt`, one for each;
              what stands in it is never changed, and its length is gen_length, rounded up to whole
              blocks with EOS. Unless `eos` says otherwise no hole is filled with an EOS
    settings  those of `Settings` and, with a name, those of its builder

    Raises ValueError, before any work, naming the setting and what would be valid; while iterating
    StepLimit, if `steps` is a cap and is hit, or ValueError, if a forward writes nothing.
    """
    return stream(prepare(model, prompt, strategy, settings, template))


@torch.inference_mode()
def stream(s: "Canvas") -> "Iterator[Step]":
    """The loop, inside the strategy's search if it has one."""
    steps, search = loop(s), s.strategy.search
    if search:
        check_iterator("search", search, steps := search(s, steps))
    yield from steps


def loop(s: "Canvas") -> "Iterator[Step]":
    """The loop that every strategy runs on."""
    strategy, temperature = s.strategy, s.settings.temperature
    generator = torch.Generator(s.x.device).manual_seed(s.settings.seed)
    s.retire()
    began = s.clock()
    for turn, window in enumerate(windows(s)):
        s.check_limit(turn)
        live, span = s.live, slice(window.start, window.end)
        rows, ran = s.rows, s.ran[live]  # so far
        at = strategy.view(s, window)
        logits = s.logits(window, at)  # [b, n * L, V]
        noise = kernels.gumbel(logits, temperature, generator) if temperature else None
        scores = s.score(logits, noise, s.x[live, span])
        ordered = s.ordered(scores, generator)

        candidates = s.candidates(window)  # [b, n * L]
        able = window.must & candidates.unflatten(1, (-1, s.block_length)).any(-1)  # [b, n]
        chosen = (strategy.choose or choose)(s, window, ordered, candidates, logits, noise)
        if strategy.choose:
            check_choice("choose", strategy.choose, chosen, candidates)
        commit, token = chosen
        back = token == strategies.MASKED
        token = token.masked_fill(back, s.mask_id)
        back &= commit & candidates & trait(strategy.rule, "revises")  # which is progress, too
        commit = commit & (token != s.x[live, span]) & ~s.given[live, span]
        stuck = able.any(-1) & ~(commit | back).any(-1)  # [b]
        unknown = (commit & (token != token.clamp(0, logits.shape[-1] - 1))).any(-1)  # [b]
        infinite = ~scores.doubt.isfinite().all(-1)  # [b]
        s.write(window, commit, token)
        ran = s.ran[live] - ran
        s.forwards[live] += ran * candidates.any(-1)
        s.retire(infinite, unknown, stuck)  # waits for the device: `spent` is the whole forward's
        spent = s.clock() - began
        rows = s.rows - rows
        yield Step(
            s.nfe, rows, ran, window, at, scores, candidates, commit, token, s.x, logits, spent
        )
        began = s.clock()
    if s.masked().any():
        raise ValueError(f"{called('schedule', strategy.schedule)} ended and left masks")


def finish(s: "Canvas", passing: "Iterator[Step]") -> "Result":
    """Run the steps of this canvas to their end and count."""
    seconds = sum(step.seconds for step in passing)
    lengths = (~s.is_end(s.x[:, s.prompt_length :])).cumprod(-1).sum(-1).tolist()  # [B]
    forwards = s.forwards.tolist()
    return Result(s.x, s.written, lengths, s.nfe, forwards, s.rows, seconds, s.prompt_length)


class StepLimit(RuntimeError):
    """`steps` was a cap, and the decode is not done."""


# --- what a caller sets, and what comes back ------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What every strategy understands.

    gen_length: tokens to write after the prompt; a multiple of block_length
    block_length: tokens a block; the answer is decoded block by block (default the strategy's)
    steps: forwards in all: a quota shares the tokens out among them (default one each), for any
        other rule they are a cap (default none)
    temperature: 0 takes the likeliest token, above 0 samples (default the strategy's)
    cfg_scale: weight of classifier-free guidance; above 0 every forward runs twice as many rows,
        half of them with the prompt masked
    eos: fill decodes every block, stop opens no block after an EOS, suppress never writes EOS,
        defer writes it last (default the strategy's)
    seed: of all randomness: sampling, and random remasking
    compile: run forwards and scores under torch.compile (default on CUDA only)
    """

    gen_length: Count = 128
    block_length: Count | None = None
    steps: Count | None = None
    temperature: float | None = None
    cfg_scale: float = 0.0
    eos: EosName | None = None
    seed: Annotated[int, (0, 2**63 - 1)] = 0
    compile: bool | None = None


@dataclass(frozen=True)
class Step:
    """One forward: what was computed, scored and committed. Tensors [b, n * L] lie over the slots
    window.start .. window.end."""

    nfe: int  # forwards so far, this one included
    rows: int  # token-forwards of this one: positions computed, times the rows of the batch
    ran: Tensor  # int64 [b]: forwards run for each row; 0 if its logits were known ahead
    window: Window
    at: Pass  # what was computed, and what it saw
    scores: Scores  # each [b, n * L]
    candidates: Tensor  # bool: masked, and in a block that is open for its row
    commit: Tensor  # bool: written now
    token: Tensor  # int64: with what; the mask where a rule takes a token back
    x: Tensor  # int64 [B, S]: the canvas itself, which the next step writes; clone it to keep it
    logits: Tensor  # [b, n * L, V]: what the scores were made from
    seconds: float  # for this forward, its scores and its commit, but not for whoever looks at it


@dataclass
class Result:
    """A finished decode. Padding of shorter prompts stands on the left of `tokens`."""

    tokens: Tensor  # int64 [B, S]
    written: Tensor  # int64 [B, S]: the forward that wrote each token; 0 for what none has written
    lengths: list[int]  # tokens of each answer before its first EOS, the prompt not counted
    nfe: int  # forwards that were run; of a search, as many as it has trajectories at the time
    forwards: list[int]  # that could commit something in each row; alone, a row's nfe
    rows: int  # token-forwards: positions computed, summed over forwards and rows of the batch
    seconds: float
    prompt_length: int  # P, padding included

    def answer(self, row: int = 0) -> list[int]:
        """The tokens of an answer before its first EOS."""
        return self.tokens[row, self.prompt_length :][: self.lengths[row]].tolist()

    def counters(self) -> dict[str, float]:
        """What every run prints. Tokens are those written before the first EOS: padding and given
        ones never count as speed."""
        answers = [row[self.prompt_length :][:n] for row, n in zip(self.written, self.lengths)]
        tokens = sum(int((answer > 0).sum()) for answer in answers)
        return {
            "forwards": self.nfe,
            "rows": self.rows,
            "tokens": tokens,
            "tokens_per_forward": round(tokens / self.nfe, 2),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 1),
        }


# --- the canvas -----------------------------------------------------------------------------------


class Canvas:
    """A decode under way: prompts and answers of a batch, and which rows are unfinished.

    prompts, templates: lists of lists of ids; without templates an answer starts as masks
    Raises ValueError for what does not fit the model or the memory.
    """

    def __init__(self, model, prompts, strategy: Strategy, settings: Settings, templates=()):
        self.strategy, self.settings = strategy.made_for(model.config.shift), settings
        self.shift = strategy.shift or model.config.shift  # of where the logits of a token stand
        self.leads = bool(model.config.shift) and trait(self.strategy.view, "leads")
        self.mask_id, self.eos_id = model.config.mask_token_id, model.config.eos_token_id
        self.ends = torch.tensor(model.config.ends, device=model.device)  # EOS, and others
        self.eos = settings.eos or ("suppress" if templates else strategy.eos)
        self.block_length = settings.block_length
        self.blocks = settings.gen_length // settings.block_length
        self.passes = 2 if settings.cfg_scale else 1  # rows of a forward for each of the batch
        self.model, self.score, self.clock = model, kernels.score, time.perf_counter
        on_cuda = model.device.type == "cuda"
        self.compiled = on_cuda if settings.compile is None else settings.compile
        self.narrow = False  # on a CPU, eager: logits only of what is masked in some row
        self.whole = self.compiled and not trait(strategy.view, "layers")
        self.nfe = self.rows = 0  # so far: forwards, those of a guide included, and token-forwards
        self.cache: Cache | None = None  # with as many rows as a forward
        self.lay_out(prompts, templates or [[self.mask_id] * settings.gen_length] * len(prompts))
        for part in self.strategy.parts():
            trait(part, "fits")(self)
        self.check_memory()
        if self.compiled:  # last: it takes a while
            fast, self.score, self.clock = compile_model(model)
            self.model = fast if self.whole else model

    def lay_out(self, prompts: list[list[int]], answers: Sequence[list[int]]) -> None:
        """Set down each prompt with what its answer starts from, once for each trajectory."""
        P, G, device = max(map(len, prompts)), self.settings.gen_length, self.model.device
        rows, starts, n = [], [], trait(self.strategy.search, "trajectories")
        for prompt, answer in zip(prompts, answers):
            start, rest = P - len(prompt), [self.eos_id] * (G - len(answer))
            rows += [[self.eos_id] * start + prompt + answer + rest] * n
            starts += [start] * n
        self.prompt_length, self.padded = P, any(starts)
        self.templated = any(set(answer) - {self.mask_id} for answer in answers)
        self.x = torch.tensor(rows, device=device)  # [B, S]
        self.given = self.x != self.mask_id  # bool [B, S]: what nothing may change
        self.start = torch.tensor(starts, device=device)  # [B]: each row's first real slot
        self.live = torch.arange(len(rows), device=device)  # [b]
        # as of `retire`: which blocks of each unfinished row have masks, and what parts asked for
        self.unfilled: list[list[bool]] = []
        self.told: dict[Callable, list[list[int]]] = {}
        self.owned = torch.zeros_like(self.start)  # [b]: of a forward's rows those that count
        self.written = torch.zeros_like(self.x)  # [B, S]: the forward that wrote each, 0 for none
        self.held = torch.zeros_like(self.start, dtype=torch.bool)  # [B]: stay when finished
        self.opened = torch.zeros_like(self.start)  # [B]: blocks opened so far
        self.ran = torch.zeros_like(self.start)  # [B]: forwards run for each row
        self.forwards = torch.zeros_like(self.start)  # [B]: those that could write something

    def check_memory(self) -> None:
        """Refuse what would not fit: the cache, logits (in float32 those of this forward and the
        one before, odds, odds times their logarithms), noise and logits with it (while it is drawn
        in float64 there are no odds), what parts keep, and the largest copy of 8-bit weights."""
        (B, S), config = self.x.shape, self.model.config
        rows, slots = B * self.passes, S
        if self.whole:
            rows, slots = memory_of(rows, slots)
        cells = self.block_length * config.vocab_size
        noise = 4 * 2 if self.settings.temperature else 0  # bytes a cell
        modules = getattr(self.model, "modules", tuple)()
        casts = (m.weight[: m.ROWS].numel() for m in modules if isinstance(m, Int8Linear))
        parts = B * self.passes * sum(trait(part, "memory")(self) for part in self.strategy.parts())
        kept, size = slots * config.slot_width, self.model.dtype.itemsize  # numbers, bytes of each
        needed = rows * (kept * size + cells * 4 * 4) + B * cells * noise + parts
        needed += max(casts, default=0) * size
        what = f"the cache and logits of {B} rows of {S} tokens"
        check_memory(what, needed, self.model.device)

    def logits(self, window: Window, at: Pass) -> Tensor:
        """Logits [b, n * L, V] as the strategy computes them, without what is never written."""
        forward = self.strategy.forward
        logits = forward(self, window, at) if forward else self.forward(window, at)
        if forward:
            shape = len(self.live), window.end - window.start, self.model.config.vocab_size
            check_shape("forward", forward, logits, shape)
        self.forbid(logits)
        return logits

    def forward(self, window: Window, at: Pass, added: Tensor | None = None) -> Tensor:
        """Logits [b, n * L, V] of the window's slots, guided if asked for; counts forward and rows.

        added: float [b, S, C], what is added to the embeddings of masks
        """
        check_pass(self, window, at)
        ids = self.x[self.live][:, at.query]  # [b, Q]
        ids = ids if at.hidden is None else ids.masked_fill(at.hidden, self.mask_id)
        start = self.start[self.live] if self.padded else None
        own, mask, shift = at.own, at.mask, self.shift
        if added is not None:
            added = added[:, at.query] * (ids == self.mask_id)[..., None]  # [b, Q, C]
        if self.passes == 2:  # the rows, then the same with every prompt token masked
            in_prompt = self.model.indices(at.query) < self.prompt_length
            ids = torch.cat((ids, ids.masked_fill(in_prompt, self.mask_id)))  # [2b, Q]
            mask = mask if mask is None or mask.dim() == 2 else torch.cat((mask, mask))
            start, own, added = (t if t is None else torch.cat((t, t)) for t in (start, own, added))
        rows, cells = at.rows, None  # of the query, and of the window; None for all
        rows = rows if isinstance(rows, Tensor) else scored(at, window, shift)
        if own is not None and isinstance(at.query, Tensor):  # without gaps all is computed
            cells = at.query[rows] + shift - window.start
        elif self.narrow and at.layer is None:
            cells = self.candidates(window).any(0).nonzero()[:, 0]
            rows = self.model.indices(slice(0, ids.shape[1]))[rows][cells]
        at = at._replace(rows=rows, own=own, mask=mask)
        cache = None if at.visible is None else self.open_cache()
        logits = self.model(ids, at, cache, start, added)
        self.nfe += 1
        self.ran[self.live] += 1
        self.rows += ids.numel() if own is None else 0
        if own is not None:  # told by `retire`
            self.owned = own.view(self.passes, -1, own.shape[1]).sum((0, 2))  # [b]
        if at.cost is not None:
            self.rows += len(ids) * at.cost // self.model.config.n_layers - ids.numel()
        if self.passes == 2:  # unsupervised guidance, arXiv 2410.18514
            guided, unguided = logits.chunk(2)
            logits = unguided + (self.settings.cfg_scale + 1) * (guided - unguided)
        return logits if cells is None else self.placed(logits, cells, window)

    def placed(self, logits: Tensor, cells: Tensor, window: Window) -> Tensor:
        """Logits of these cells among all of the window's, [b, n * L, V]: one that was not computed
        is no candidate, and sure of what it holds."""
        holds = self.x[self.live, window.start : window.end, None]  # [b, n * L, 1]
        every = logits.new_zeros(*holds.shape[:2], logits.shape[-1]).scatter_(-1, holds, SURE)
        return every.index_copy(1, cells, logits)

    def computed(self, window: Window, at: Pass) -> Window:
        """The window with all that this pass computes behind it; with gaps, as it is."""
        if isinstance(at.query, Tensor):
            return window
        return replace(window, end=max(window.end, at.query.stop))

    def open_cache(self) -> Cache:
        if self.cache is None:
            self.cache = self.model.new_cache(len(self.live) * self.passes, self.x.shape[1])
        return self.cache

    def forbid(self, logits: Tensor) -> None:
        """Rule out, in place, what is never written. After guidance: -inf minus -inf is NaN."""
        logits[..., self.mask_id] = -inf
        if self.eos == "suppress":
            logits[..., self.ends] = -inf

    def ordered(self, scores: Scores, generator: torch.Generator) -> Scores:
        """The scores with the doubt that decides which tokens are the surest."""
        doubt = scores.doubt
        if order := self.strategy.order:
            check_shape("order", order, doubt := order(scores, generator), scores.doubt.shape)
        if self.eos == "defer":
            doubt = doubt.masked_fill(self.is_end(scores.token), kernels.LARGEST)
        return scores.ordered(doubt)

    def answers(self) -> Tensor:
        """The answers of the unfinished rows by block, int64 [b, n, L]: a copy."""
        answers = self.x[self.live, self.prompt_length :]
        return answers.unflatten(-1, (self.blocks, self.block_length))

    def masked(self) -> Tensor:
        return self.answers() == self.mask_id  # bool [b, n, L]

    def is_open(self) -> Tensor:
        """Which blocks each unfinished row has opened, bool [b, n, 1]."""
        numbers = torch.arange(self.blocks, device=self.x.device)
        return (numbers < self.opened[self.live, None])[..., None]

    def candidates(self, window: Window) -> Tensor:
        """The cells of the window that may be written, bool [b, n * L]."""
        cells, P = self.masked() & self.is_open(), self.prompt_length  # [b, n, L]
        if self.leads and window.age == 0:
            cells[..., 1:] &= ~cells[..., :1]
        return cells.flatten(1)[:, window.start - P : window.end - P]

    def window(self, low, high, age, final, must: Tensor, remaining: int | None = None) -> Window:
        """The blocks low .. high as a window; the other arguments as there."""
        start, end = (self.prompt_length + block * self.block_length for block in (low, high))
        suffix, forwards = self.x.shape[1] - end, self.forwards[self.live]
        live, own = self.live.clone(), ~self.given[self.live, start:end]
        known = start, end, age, final, suffix, remaining, must, live, forwards, own, len(self.x)
        return Window(*known)

    def write(self, window: Window, commit: Tensor, token: Tensor) -> None:
        """Put the committed tokens on the canvas; under eos="stop", end the rows that hold an end:
        at once if the schedule cuts them there, else when their open blocks are full."""
        live, span = self.live, slice(window.start, window.end)
        self.x[live, span] = torch.where(commit, token, self.x[live, span])
        self.written[live, span] = self.written[live, span].masked_fill(commit, self.nfe)
        if self.eos == "stop":
            ends, masked = self.ended(), self.masked()
            rest = ends.cumsum(-1) > ends.long()  # behind the first
            if not trait(self.strategy.schedule, "cuts"):
                waits = (masked & self.is_open()).flatten(1).any(-1, keepdim=True)
                rest = masked.flatten(1) & ends.any(-1, keepdim=True) & ~waits
            answers = slice(self.prompt_length, None)
            rest &= ~self.given[live, answers]
            self.x[live, answers] = self.x[live, answers].masked_fill(rest, self.eos_id)

    def is_end(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, self.ends)

    def ended(self) -> Tensor:
        """The end tokens that were written in the answers of unfinished rows, bool [b, n * L]."""
        return (self.is_end(self.x) & ~self.given)[self.live, self.prompt_length :]

    def check_limit(self, turn: int) -> None:
        steps, G = self.settings.steps, self.settings.gen_length
        if turn > ENDLESS * G:
            raise StepLimit(f"{turn} forwards have not filled {G} tokens: is there progress?")
        if steps and self.nfe >= steps and not trait(self.strategy.rule, "quota"):
            spent = f"steps={self.nfe} forwards are spent, {self.masked().sum()} masks are left"
            raise StepLimit(f"{spent}: raise steps or lower the threshold")

    def retire(self, *faults: Tensor) -> None:
        """Drop the rows that have no mask left, from the batch and from the cache: a finished row
        costs nothing. faults: for each of FAULTS, bool [b], the rows that have it."""
        stays = torch.cat((self.masked().any(-1), self.held[self.live, None]), 1)  # [b, blocks + 1]
        parts = (trait(part, "asks") for part in self.strategy.parts())
        asks = {ask: ask(self) for ask in parts if ask}
        columns = torch.stack((self.owned, *faults), 1)
        # the one wait for the device in a forward
        told = torch.cat((stays, columns, *asks.values()), 1).tolist()
        for place, fault in enumerate(FAULTS[: len(faults)], self.blocks + 2):
            if any(row[place] for row in told):
                raise ValueError(fault)
        self.rows += sum(row[self.blocks + 1] for row in told)
        rows = [row for row in told if any(row[: self.blocks + 1])]
        if len(rows) < len(told):
            stay = self.live[(~stays.any(-1)).int().argsort(stable=True)[: len(rows)]]
            self.copy(stay, stay)
        self.owned = self.owned * 0
        self.unfilled, first = [row[: self.blocks] for row in rows], self.blocks + 2 + len(faults)
        for ask, answer in asks.items():
            self.told[ask] = [row[first : first + answer.shape[1]] for row in rows]
            first += answer.shape[1]

    def copy(self, rows: Tensor, parents: Tensor) -> None:
        """Go on with these rows alone, int64 [w] in order, each as a copy of an unfinished or held
        one; the cache goes along."""
        for canvas in (self.x, self.written):
            canvas[rows] = canvas[parents]
        if self.cache is not None:
            self.cache.keep(self.lines(torch.searchsorted(self.live, parents)))
        self.live, self.owned = rows, torch.zeros_like(rows)

    def lines(self, places: Tensor) -> Tensor:
        """The rows of a forward, and of the cache, that belong to these of the live rows."""
        return torch.cat([places + len(self.live) * i for i in range(self.passes)])


# --- checks: all of them, before any work ---------------------------------------------------------


def prepare(model: LLaDA, prompt, strategy, settings: dict, template=None) -> Canvas:
    """Check all that can be wrong before the first forward, and lay out the canvas."""
    config = getattr(model, "config", None)
    require(isinstance(config, Config), "model", model, "what load_model gives back")
    templates = check_template(template, config)
    strategy, chosen = plan(strategy, settings, max(map(len, templates), default=None))
    prompts = check_prompt(prompt, config, chosen.gen_length)
    if templates and len(templates) != len(prompts):
        counts = f"there are {len(prompts)} prompts and {len(templates)} templates"
        raise ValueError(f"{counts}: give one template for each prompt")
    return Canvas(model, prompts, strategy, chosen, templates)


def plan(strategy, settings: dict, template_length=None) -> tuple[Strategy, Settings]:
    """Sort the settings into those of the strategy and those of all, and check both.

    strategy: its name, or a Strategy. A template's length decides gen_length.
    """
    common = {name: settings[name] for name in settings if name in options(Settings)}
    own = {name: settings[name] for name in settings if name not in common}
    by_name = isinstance(strategy, str)
    strategy = strategies.build(strategy, **own) if by_name else strategy
    require(isinstance(strategy, Strategy), "strategy", strategy, "a name, or a Strategy")
    if own and not by_name:
        takes = f"a Strategy built by hand takes only {', '.join(options(Settings))}"
        raise ValueError(f"unknown setting {brief(next(iter(own)))[1:-1]}: {takes}")
    strategies.check_settings(Settings, common)
    chosen = Settings(**common)
    G, L, steps = chosen.gen_length, chosen.block_length, chosen.steps
    if template_length is not None:
        valid = "none beside a template, whose length it is"
        require("gen_length" not in common, "gen_length", G, valid)
    L = L or strategy.block_length or template_length or G
    if strategy.fixed:
        valid = f"{strategy.block_length}, which is what this strategy was made for"
        require(L == strategy.block_length, "block_length", L, valid)
    G = -(-template_length // L) * L if template_length is not None else G
    nearest = lambda n, of: f"the nearest is {max(1, round(n / of)) * of}"
    if G % L:
        wrong = f"gen_length {G} is not a multiple of block_length {L}"
        raise ValueError(f"{wrong}: {nearest(G, L)}")
    if trait(strategy.rule, "quota") and steps and steps % (G // L):
        wrong = f"steps {steps} do not divide evenly among {G // L} blocks"
        raise ValueError(f"{wrong}: {nearest(steps, G // L)}")
    warm = strategy.temperature if chosen.temperature is None else chosen.temperature
    return strategy, replace(chosen, gen_length=G, block_length=L, temperature=warm)


def check_prompt(prompt, config: Config, gen_length: int) -> list[list[int]]:
    """One prompt or several, as a tensor or as lists, to a list of lists of ids that fit."""
    rows, mask = check_ids(prompt, "prompt", config.vocab_size), config.mask_token_id
    most = config.max_sequence_length
    for which, row in rows.items():
        if mask in row:
            raise ValueError(f"{which} holds the mask token, id {mask}, which marks what to write")
        if len(row) + gen_length > most:
            lengths = f"{which} has {len(row)} tokens, gen_length is {gen_length}"
            raise ValueError(f"{lengths}: together more than the model's {most}")
    return list(rows.values())


def check_template(template, config: Config) -> list[list[int]]:
    """The same of templates, each of which must have a hole; none if there is none."""
    rows = {} if template is None else check_ids(template, "template", config.vocab_size)
    for which, row in rows.items():
        if (mask := config.mask_token_id) not in row:
            raise ValueError(f"{which} has no hole: the mask token, id {mask}, marks what to write")
    return list(rows.values())


strategies.TAKEN.update(options(Settings))
strategies.discover()

if __name__ == "__main__":
    sys.modules["dllm"] = sys.modules[__name__]  # so that this file runs once
    from lab.command_line import run

    run()
