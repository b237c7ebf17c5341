"""Diffusion-LLM decoding: every strategy is a schedule, a view and a commit rule on one loop (`steps`, below).

    schedule  which blocks are open now              serial | pipeline
    view      which positions one forward recomputes, and which cache slots they see     (query, visible, mask)
    rule      which of the scored tokens to commit   quota | threshold | factor | local_leap | adaptive

The canvas is the prompt followed by `gen_length` masks. Here are the loop and the five papers that it was cut for; eighteen more systems, each
a part or two of the same kinds, are in related.py. Left out on purpose: the network (model.py), scores from logits (kernels.py), files
(load_weights.py), the reading of settings (options.py), Dream's shifted logits, likelihood evaluation.

Papers: LLaDA (arXiv 2502.09992), Fast-dLLM (2505.22618), LocalLeap (2510.07081), Streaming-dLLM (2601.17917), D2F (2508.09192).

Letters: B batch, b its unfinished rows, S canvas, P prompt, k block length, n blocks in the window (or on the canvas), Q positions computed
in one forward, V vocabulary.
"""

import copy
import functools
import runpy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from compiled import Compiled, compiled, memory_of
from kernels import Scores
from load_weights import check_memory
from model import Cache, LLaDA, Pass
from options import check_kinds, check_prompt, check_range, check_template, nearest_multiple, options, require

DEFAULT = "fast-dllm"  # the strategy where none is named

# --- what a caller sets, and what comes back -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What every strategy understands.

    gen_length: tokens to write after the prompt; a multiple of block_length
    block_length: tokens a block; a strategy works through the answer block by block (default the strategy's: 32, or 1 for ar)
    steps: forwards in all; llada spreads the tokens evenly over them (default one token each), for the others a cap (default none)
    temperature: 0 takes the likeliest token, above 0 samples (default the strategy's: 0, or 0.7 for prism)
    cfg_scale: weight of classifier-free guidance; above 0 every forward runs twice as many rows, half of them with the prompt masked
    eos: fill decodes every block, stop opens no block after an EOS, suppress never writes EOS, defer writes it last (default the strategy's)
    seed: of all randomness: sampling, and random remasking
    compile: run forwards and scores under torch.compile (default on CUDA only)
    """

    gen_length: int = 128
    block_length: int | None = None
    steps: int | None = None
    temperature: float | None = None
    cfg_scale: float = 0.0
    eos: Literal["fill", "stop", "suppress", "defer"] | None = None
    seed: int = 0
    compile: bool | None = None


@dataclass(frozen=True)
class Traits:
    """What Strategy must know of a rule, a view or a schedule to see whether it goes with the others. `has` says it of one."""

    quota: bool = False  # the rule shares `steps` out among the tokens; with any other they are a cap
    revises: bool = False  # the rule takes tokens back, or writes others in their place
    length: int | None = None  # of blocks, the only one that will do
    exact: bool = False  # no forward of the view attends to a stale slot
    settled: float = 1  # the forward of a block, from 0, since which the view computes each slot anew or keeps it; inf if it never does
    paced: bool = False  # what is stale in the view is refreshed by the forwards of the whole decode, instead of by a block's
    frontier: bool = False  # each row goes from left to right at its own pace, as a guide reads
    features: bool = False  # the view needs a cache with features


def has(**own) -> Callable:
    """A decorator: give a part these traits, instead of the defaults."""
    return lambda part: setattr(part, "traits", Traits(**own)) or part


def traits(part) -> Traits:
    return getattr(part, "traits", Traits())


@dataclass(frozen=True)
class Strategy:
    """A way to decode; STRATEGIES holds the named ones, and any combination that makes sense can be built by hand."""

    rule: "Rule"
    view: "View"
    schedule: "Schedule"
    eos: str = "fill"
    remasking: str = "low_confidence"  # the order of ORDERS
    adjust: "Adjust | None" = None
    ahead: "Ahead | None" = None
    soften: "Soften | None" = None
    guide: "Guide | None" = None
    search: "Search | None" = None
    block_length: int | None = 32  # where the caller names none; None for gen_length
    temperature: float = 0.0  # where the caller names none

    def __post_init__(self):
        rule, view, schedule = map(traits, (self.rule, self.view, self.schedule))
        if schedule.frontier != bool(self.guide) or view.frontier and not schedule.frontier:
            raise ValueError("a guide needs the frontier schedule, and that schedule and the trailing view need a guide")
        if self.schedule is not serial and not (view.exact or view.paced or view.frontier):
            raise ValueError("pipelined blocks need a view without stale slots, or one that is refreshed by the pipeline's forwards")
        if view.paced and (self.schedule is serial or schedule.frontier):
            raise ValueError("a view that a pipeline's forwards refresh needs pipelined blocks: elsewhere each block counts its own")
        if self.ahead and (self.schedule is not serial or view.settled == torch.inf):
            raise ValueError("drafts need one block at a time, and a cache whose slots inside the block are computed anew in every forward")
        if self.ahead and self.soften:
            raise ValueError("a draft would need softened masks of its own: drafts and softened masks cannot be combined")
        if view.settled == torch.inf and rule.revises:
            raise ValueError("a rule that changes written tokens contradicts a cache that keeps what was computed for them")
        if self.schedule is not serial and (self.adjust or rule.revises):
            raise ValueError("what remembers a block's forwards, or changes its tokens, needs one block at a time")
        if self.schedule is not serial and rule.quota:
            raise ValueError("a quota of tokens per step has no meaning for pipelined blocks, which share their steps: use a threshold")
        if self.search and (self.schedule is not serial or self.ahead or self.adjust or self.soften or rule.revises):
            raise ValueError("a search copies canvases and caches, one block at a time, but nothing that drafts or rules remember of them")


@dataclass(frozen=True)
class Window:
    """What a schedule opens for one forward: the slots start .. end, n blocks of k."""

    start: int
    end: int
    age: int  # forwards since the block was entered: 0 in its first, in which approximate caches are refreshed
    stale: int  # the first slot whose token was not final when its keys and values were last computed
    suffix: int  # slots of the canvas behind `end`
    forwards: int | None  # that a quota has left for this block, this one included; None where blocks share their forwards
    must: Tensor  # bool [b, n]: blocks in which a forward commits at least one token
    live: Tensor  # int64 [b]: the unfinished rows of the batch
    turns: Tensor  # int64 [b]: steps so far in which something could be written in each of them
    lookahead: int = 0  # blocks behind the open ones of each row whose cells may be written, too


@dataclass(frozen=True)
class Step:
    """One forward: what was computed, scored and committed. Tensors [b, n * k] lie over the slots window.start .. window.end."""

    nfe: int  # forwards so far, this one included
    rows: int  # token-forwards of this one: positions computed, times the rows of the batch
    ran: Tensor  # int64 [b]: forwards run for each row; 0 if the logits of its canvas were known ahead
    window: Window
    at: Pass  # what was computed, and what it saw
    scores: Scores  # each [b, n * k]
    candidates: Tensor  # bool: masked, and in a block that is open for its row
    commit: Tensor  # bool: written now
    token: Tensor  # int64: with what; the mask where a rule takes a token back
    x: Tensor  # int64 [B, S]: the canvas itself, which the next step writes; clone it to keep it
    logits: Tensor  # [b, n * k, V]: what the scores were made from; whoever keeps the step keeps them
    seconds: float  # that this forward took, with its scores and its commit, but without whoever looks at the step


@dataclass
class Result:
    """A finished decode. Padding of shorter prompts stands on the left of `tokens`."""

    tokens: Tensor  # int64 [B, S]
    written: Tensor  # int64 [B, S]: the forward that wrote each token; 0 for what was given, and for an EOS that eos="stop" filled in
    lengths: list[int]  # tokens of each answer before its first EOS, the prompt not counted
    nfe: int  # forwards that were run; of a search, as many as it has trajectories at the time
    forwards: list[int]  # forwards that could commit something in each row; alone, a row's nfe
    rows: int  # token-forwards: positions computed, summed over forwards and rows of the batch
    seconds: float
    prompt_length: int  # P, padding included

    def answer(self, row: int = 0) -> list[int]:
        """The tokens of an answer before its first EOS."""
        return self.tokens[row, self.prompt_length :][: self.lengths[row]].tolist()

    def counters(self) -> dict[str, float]:
        """What every run prints. Tokens are those written before the first EOS, so that padding and given ones never count as speed."""
        tokens = sum(int((row[self.prompt_length :][:length] > 0).sum()) for row, length in zip(self.written, self.lengths))
        return {
            "forwards": self.nfe,
            "rows": self.rows,
            "tokens": tokens,
            "tokens_per_forward": round(tokens / self.nfe, 2),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 1),
            "ar_ness": [round(share, 2) for share in self.ar_ness()],
        }

    def ar_ness(self, k: int = 1) -> tuple[float, float]:
        """How far the answers were written from left to right, 1 for entirely: (local, global), means over the rows (DiffuCoder, arXiv 2506.20639).

        local: share of the tokens, after the first k, that stand right behind the k tokens written before them
        global: share of the tokens that were among the k leftmost masks when they were written
        Tokens that were written in one forward count from left to right.
        """
        shares = []
        for row, length in enumerate(self.lengths):
            written = self.written[row, self.prompt_length :][:length]
            order = written.argsort(stable=True)[int((written == 0).sum()) :]  # the positions as they were written, those given left out
            steps = (order.unfold(0, k + 1, 1).diff() == 1).all(-1) if len(order) > k else torch.ones(1)
            left = (order < order[:, None]).triu(1).sum(-1)  # masks to the left of each when it was written
            shares.append((steps.float().mean().item(), (left < k).float().mean().item() if len(order) else 1.0))
        return tuple(sum(column) / len(shares) for column in zip(*shares))


# --- the loop --------------------------------------------------------------------------------------------------------------------------


def generate(model: LLaDA, prompt, strategy: "str | Strategy" = DEFAULT, template=None, **settings) -> Result:
    """Decode to the end and return the canvas with its counters. Arguments and errors as for `decode`."""
    canvas = prepare(model, prompt, strategy, settings, template)
    return finish(canvas, steps(canvas))


def decode(model: LLaDA, prompt, strategy: "str | Strategy" = DEFAULT, template=None, **settings) -> Iterator[Step]:
    """Check everything, then return an iterator that yields once per forward, and once per canvas whose logits were known ahead.

    prompt    int64 [B, P], or a list of token ids, or a list of such lists of any lengths (they are padded on the left)
    strategy  a name in STRATEGIES, or a Strategy
    template  an answer with holes, which are mask tokens: in the forms of `prompt`, one for each; what stands in it is never changed, and its
              length is gen_length, rounded up to whole blocks with EOS. Unless `eos` says otherwise no hole is filled with an EOS
    settings  those of `Settings` and, with a name, those of its builder

    Raises ValueError, before any work, naming the setting and what would be valid; StepLimit while iterating, if `steps` is a cap and is hit.
    """
    return steps(prepare(model, prompt, strategy, settings, template))


@torch.inference_mode()
def steps(s: "Canvas") -> Iterator[Step]:
    """The loop that every strategy runs on."""
    parts = s.strategy.rule, s.strategy.adjust, s.strategy.ahead, s.strategy.guide
    rule, adjust, ahead, guide = map(copy.copy, parts)  # what they remember is this decode's
    settings, generator = s.settings, torch.Generator(s.x.device).manual_seed(s.settings.seed)
    began = s.clock()
    windows = s.strategy.schedule(s)
    for window in s.strategy.search(s, windows) if s.strategy.search else windows:
        if settings.steps and s.nfe >= settings.steps and not traits(s.strategy.rule).quota:
            raise StepLimit(f"steps={s.nfe} forwards are spent, {int(s.masked().sum())} masks are left: raise steps or lower the threshold")
        at = s.strategy.view(s, window)
        logits, rows, ran = (ahead or forward)(s, window, at)  # [b, n * k, V]
        s.forbid(logits)
        candidates = s.candidates(window)  # [b, n * k]
        s.turns[s.live] += candidates.any(-1)
        if s.strategy.soften:
            s.soften(window, candidates, s.strategy.soften(logits.float().softmax(-1), window))
        if adjust:
            logits = adjust(logits, candidates, window)
        noise = kernels.gumbel(logits, settings.temperature, generator) if settings.temperature else None
        scores = s.score(logits, noise)
        doubt = scores.doubt  # before other orders replace it
        scores = scores._replace(doubt=ORDERS[s.strategy.remasking](scores, generator))
        if s.eos == "defer":
            scores = scores._replace(doubt=scores.doubt.masked_fill(scores.token == s.eos_id, kernels.LARGEST))

        commit, token = choose(rule, scores, candidates, window)
        if guide:
            commit, token, read = guide(s, window, logits, noise, commit, token)
            rows, ran = rows + read, ran + 1
        token = token.masked_fill(token == MASKED, s.mask_id)
        span = slice(window.start, window.end)
        commit &= (token != s.x[s.live, span]) & ~s.given[s.live, span]
        s.write(window, commit, token, doubt)
        s.retire()  # reads the canvas, and so waits for the device: the time below is the whole forward's
        yield Step(s.nfe, rows, ran, window, at, scores, candidates, commit, token, s.x, logits, s.clock() - began)
        began = s.clock()


def forward(s: "Canvas", window: Window, at: Pass, drafts: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, int, Tensor]:
    """Logits [b, n * k, V] of the window's slots, guided if asked for, the number of token-forwards spent, and for each row 1, int64 [b].

    drafts: compute these canvases instead, int64 [m, S], each a draft of the live row with its number, int64 [m]; the cache is left as it is
    """
    model, scale, cache = s.model, s.settings.cfg_scale, s.cache
    canvases, lines = drafts or (s.x[s.live], torch.arange(len(s.live), device=s.x.device))
    ids = canvases[:, at.query]  # [b, Q]
    start = s.start[s.live][lines] if s.padded else None
    if scale:  # the rows, then the same with every prompt token masked (unsupervised guidance, arXiv 2410.18514)
        in_prompt = model.indices(at.query) < s.prompt_length
        ids = torch.cat((ids, ids.masked_fill(in_prompt, s.mask_id)))  # [2b, Q]
        start = start if start is None else start.repeat(2)
    if at.visible is not None and cache is None:
        cache = s.cache = model.new_cache(len(ids), s.x.shape[1], traits(s.strategy.view).features)
    if cache is not None and drafts:
        picked = torch.cat((lines, lines + len(s.live))) if scale else lines
        cache = cache.pick(picked)
        if isinstance(at.visible, Tensor) and at.visible.dim() == 3:
            at = at._replace(visible=at.visible[:, picked])
    twice = lambda t: torch.cat((t, t)) if scale and t is not None else t  # noqa: E731
    added = None if s.soft is None else twice(s.soft[s.live][:, at.query]) * (ids == s.mask_id)[..., None]  # [b, Q, C]
    at = at._replace(own=twice(at.own), mask=twice(at.mask) if at.mask is not None and at.mask.dim() == 4 else at.mask)
    logits = model(ids, at, None if at.visible is None else cache, start, added)
    s.nfe += 1
    if scale:
        guided, unguided = logits.chunk(2)
        logits = unguided + (scale + 1) * (guided - unguided)
    once = torch.ones_like(s.live)
    if at.renew:  # the first layer computes them all
        Q, layers = ids.shape[1], max(1, model.config.n_layers)
        return logits, len(ids) * (Q + (layers - 1) * min(Q, sum(at.renew))) // layers, once
    if at.own is None:
        return logits, ids.numel(), once
    whole = logits.new_zeros(len(logits), window.end - window.start, logits.shape[-1])  # a cell that was not computed is no candidate
    return whole.index_copy(1, at.query[at.rows] - window.start, logits), int(at.own.sum()), once


def choose(rule: "Rule", scores: Scores, candidates: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Which cells to write, bool [b, n * k], and with what: as the rule says, and the surest candidate of a block that must move and has none."""
    by_block = lambda t: t.unflatten(-1, window.must.shape[1:] + (-1,)).flatten(0, 1)  # noqa: E731  [b, n * k] -> [b * n, k]
    scores, candidates = Scores(*map(by_block, scores)), by_block(candidates)
    chosen = rule(scores, candidates, window)
    commit, token = chosen if isinstance(chosen, tuple) else (chosen & candidates, scores.token)
    stuck = window.must.flatten()[:, None] & ~(commit & candidates).any(-1, keepdim=True)  # [b * n, 1]
    commit = commit | stuck & candidates & (rank(scores.doubt, candidates) == 0)
    return commit.view(len(window.must), -1), token.reshape(len(window.must), -1)


def finish(s: "Canvas", stream: Iterator[Step]) -> Result:
    """Run the steps of this canvas to their end and count."""
    forwards = torch.zeros_like(s.opened[:: s.width])  # [B]
    nfe, rows, seconds = 0, 0, 0.0
    for step in stream:
        rows, seconds = rows + step.rows, seconds + step.seconds
        prompt = step.window.live // s.width  # [b]: of each row
        moving = forwards.new_zeros(len(forwards)).index_add(0, prompt, step.candidates.any(-1).long()) > 0
        each = torch.zeros_like(forwards).index_add(0, prompt, step.ran) * moving  # [B]: of all its trajectories
        forwards, nfe = forwards + each, step.nfe if s.width == 1 else nfe + int(each.max())
    lengths = (s.x[:, s.prompt_length :] != s.eos_id).cumprod(-1).sum(-1).tolist()  # [B]
    return Result(s.x, s.written, lengths, nfe, forwards.tolist(), rows, seconds, s.prompt_length)


class StepLimit(RuntimeError):
    """`steps` was a cap, and the decode is not done."""


def prepare(model: LLaDA, prompt, strategy: "str | Strategy", settings: dict, template=None) -> "Canvas":
    """Check all that can be wrong before the first forward, and lay out the canvas."""
    templates = check_template(template, model.config)
    strategy, chosen = plan(strategy, settings, max(map(len, templates), default=None))
    prompts = check_prompt(prompt, model.config, chosen.gen_length)
    check_model(model, strategy)
    if strategy.guide:  # whose longest sequence may be shorter
        check_prompt(prompts, strategy.guide.model.config, chosen.gen_length)
    if templates and len(templates) != len(prompts):
        raise ValueError(f"there are {len(prompts)} prompts and {len(templates)} templates: give one template for each prompt")
    return Canvas(model, prompts, strategy, chosen, templates)


# --- the canvas ------------------------------------------------------------------------------------------------------------------------


class Canvas:
    """A decode under way: prompt and answer of a batch, and which rows are unfinished. The answer starts as masks, or as a template."""

    def __init__(self, model: LLaDA, prompts: list[list[int]], strategy: Strategy, settings: Settings, templates: Sequence = ()):
        self.strategy, self.settings = strategy, settings
        self.mask_id, self.eos_id = model.config.mask_token_id, model.config.eos_token_id
        self.eos = settings.eos or ("suppress" if templates else strategy.eos)
        self.block_length, self.blocks = settings.block_length, settings.gen_length // settings.block_length
        self.width = strategy.search.n if strategy.search else 1  # rows for each prompt: the trajectories of a search
        prompts, templates = ([row for row in rows for _ in range(self.width)] for rows in (prompts, templates))
        self.passes = 2 if settings.cfg_scale else 1  # rows of the cache, and of a forward, for each row of the batch
        B, P = len(prompts), max(map(len, prompts))
        fast = model.device.type == "cuda" if settings.compile is None else settings.compile
        self.model, self.score, self.clock = compiled(model) if fast else (model, kernels.score, time.perf_counter)
        self.check_memory(B, P + settings.gen_length)
        self.prompt_length = P
        self.padded = any(len(row) < P for row in prompts)
        answers = templates or [[self.mask_id] * settings.gen_length] * B
        answers = [row + [self.eos_id] * (settings.gen_length - len(row)) for row in answers]
        padded = [[self.eos_id] * (P - len(row)) + row + answer for row, answer in zip(prompts, answers)]
        self.x = torch.tensor(padded, device=model.device)  # [B, S]
        self.given = self.x != self.mask_id  # bool [B, S]: what nothing may change
        self.start = torch.tensor([P - len(row) for row in prompts], device=model.device)  # [B]: each row's first real slot
        self.live = torch.arange(B, device=model.device)  # [b]
        self.left: list[list[bool]] = self.masked().any(-1).tolist()  # which blocks of each unfinished row have masks, as of `retire`
        self.written = torch.zeros_like(self.x)  # [B, S]: the forward that wrote each token, 0 for none
        self.doubt = torch.zeros(self.x.shape, device=model.device)  # [B, S]: about each token, when it was written
        self.held = torch.zeros(B, dtype=torch.bool, device=model.device)  # [B]: rows that stay when they are finished
        self.opened = torch.zeros(B, dtype=torch.int64, device=model.device)  # [B]: blocks opened so far
        self.turns = torch.zeros_like(self.opened)  # [B]: steps so far in which something could be written in each row
        self.soft: Tensor | None = None  # [B, S, C]: added to the embedding of each mask
        self.nfe = 0  # forwards so far, those of a guide included: counted here, where no tensor must be asked for it
        self.cache: Cache | None = None  # with as many rows as `live` (twice that under guidance)

    def check_memory(self, B: int, S: int) -> None:
        guide = self.strategy.guide
        configs = [model.config for model in (self.model, guide and guide.model) if model]
        features = traits(self.strategy.view).features * configs[0].n_layers * configs[0].d_model
        widths = sum(2 * c.n_layers * c.kv_heads * c.head_width for c in configs) + features
        cells = self.settings.gen_length if guide else self.block_length
        logits = cells * configs[0].vocab_size * 4 * 4  # float32: logits, those of the step before, odds, odds * log odds
        rows, slots = memory_of(B * self.passes, S) if isinstance(self.model, Compiled) else (B * self.passes, S)
        needed = rows * (slots * widths * self.model.dtype.itemsize + logits)
        check_memory(f"the cache and logits of {B} rows of {S} tokens", needed, self.model.device)

    def answers(self) -> Tensor:
        """The answers of the unfinished rows by block, int64 [b, n, k]: a copy."""
        return self.x[self.live, self.prompt_length :].unflatten(-1, (self.blocks, self.block_length))

    def masked(self) -> Tensor:
        return self.answers() == self.mask_id  # bool [b, n, k]

    def is_open(self, lookahead: int = 0) -> Tensor:
        """Which blocks each unfinished row has opened, or would with so many more, bool [b, n, 1]."""
        return (torch.arange(self.blocks, device=self.x.device) < self.opened[self.live, None] + lookahead)[..., None]

    def candidates(self, window: Window) -> Tensor:
        """The cells of the window that may be written, bool [b, n * k]."""
        cells = (self.masked() & self.is_open(window.lookahead)).flatten(1)
        return cells[:, window.start - self.prompt_length : window.end - self.prompt_length]

    def window(self, low: int, high: int, age: int, stale: int, must: Tensor, forwards: int | None = None, lookahead: int = 0) -> Window:
        """The blocks low .. high as a window."""
        start, end = (self.prompt_length + block * self.block_length for block in (low, high))
        return Window(start, end, age, stale, self.x.shape[1] - end, forwards, must, self.live, self.turns[self.live], lookahead)

    def soften(self, window: Window, candidates: Tensor, weights: Tensor) -> None:
        """From now on add this mixture of the tokens' embeddings, weights [b, n * k, V], to those of the masks in the window."""
        table = self.model.wte.weight  # [V, C]
        if self.soft is None:
            self.soft = table.new_zeros(*self.x.shape, table.shape[1])
        self.soft[self.live, window.start : window.end] = (weights.to(table.dtype) @ table) * candidates[..., None]

    def write(self, window: Window, commit: Tensor, token: Tensor, doubt: Tensor) -> None:
        """Put the committed tokens on the canvas; under eos="stop", end every row whose open blocks are full and hold an EOS."""
        span = slice(window.start, window.end)
        self.x[self.live, span] = torch.where(commit, token, self.x[self.live, span])
        self.written[self.live, span] = self.written[self.live, span].masked_fill(commit, self.nfe)
        self.doubt[self.live, span] = torch.where(commit, doubt, self.doubt[self.live, span])
        if self.eos == "stop":
            masked = self.masked()
            ended = self.has_eos() & ~(masked & self.is_open()).flatten(1).any(-1)  # [b]
            rest = (masked & ended[:, None, None]).flatten(1)
            self.x[self.live, self.prompt_length :] = self.answers().flatten(1).masked_fill(rest, self.eos_id)

    def forbid(self, logits: Tensor) -> None:
        """Rule out, in place, what is never written. After guidance and mixtures: -inf minus -inf would be NaN."""
        logits[..., self.mask_id] = -torch.inf
        if self.eos == "suppress":
            logits[..., self.eos_id] = -torch.inf

    def has_eos(self) -> Tensor:
        """Which unfinished rows hold an EOS that was written, bool [b]."""
        return ((self.x == self.eos_id) & ~self.given)[self.live].any(-1)

    def retire(self) -> None:
        """Drop the rows that have no mask left, from the batch and from the cache: a finished row costs nothing."""
        left = torch.cat((self.masked().any(-1), self.held[self.live, None]), 1).tolist()  # the one wait for the device in a forward
        stay = [place for place, row in enumerate(left) if any(row)]
        if len(stay) < len(left):
            self.copy(self.live[stay], self.live[stay])
        self.left = [left[place][:-1] for place in stay]

    def copy(self, rows: Tensor, parents: Tensor) -> None:
        """Go on with these rows alone, int64 [w] in order, each as a copy of one that is unfinished or held; the cache goes along."""
        for canvas in (self.x, self.written, self.doubt):
            canvas[rows] = canvas[parents]
        if self.cache is not None:
            place = torch.searchsorted(self.live, parents)
            self.cache.keep(torch.cat([place + len(self.live) * i for i in range(self.passes)]))
        self.live = rows


# --- schedules: which blocks are open --------------------------------------------------------------------------------------------------

Schedule = Callable[[Canvas], Iterator[Window]]


def serial(s: Canvas) -> Iterator[Window]:
    """One block after the other, all rows of the batch together (LLaDA's semi-autoregressive sampling)."""
    stale = 0
    for block in range(s.blocks):
        s.opened.fill_(block + 1)
        age, forwards = 0, (s.settings.steps or s.settings.gen_length) // s.blocks
        while any(row[block] for row in s.left):
            yield (window := s.window(block, block + 1, age, stale, s.masked()[:, block].any(-1, keepdim=True), forwards - age))
            stale, age = window.start, age + 1


def pipeline(block_add_threshold: float, decoded_token_threshold: float, first_only: bool = False) -> Schedule:
    """Several blocks at once: the next opens when the last is partly full, and must move when its predecessor nearly is (D2F).

    first_only: of the blocks that must move, hold only the first to it (d3LLM).
    The numbers at line ends are the steps in docs/d2f.md. Each row of a batch runs its own pipeline; the window spans them all.
    """

    def schedule(s: Canvas) -> Iterator[Window]:
        stale = age = 0
        while len(s.live):
            masked = s.masked()
            progress = (~masked).sum(-1) / s.block_length  # [b, n]
            before = F.pad(progress, (1, 0), value=1.0)  # [b, n + 1]: progress of the block to the left, the prompt being full
            opened = s.opened[s.live]
            full = (~masked.any(-1)).cumprod(-1).sum(-1)  # [b]: leading blocks without a mask
            add = (opened < s.blocks) & (before.gather(1, opened[:, None])[:, 0] >= block_add_threshold)  # 1
            if s.eos == "stop":
                add &= ~s.has_eos()
            s.opened[s.live] = (opened + add).maximum(full + 1)  # a template may fill blocks that were never opened
            must = before[:, :-1] >= decoded_token_threshold  # 2
            if first_only:
                must &= (masked & s.is_open()).any(-1)
                must &= must.cumsum(-1) == 1
            low, high = int(full.min()), int(s.opened[s.live].max())
            yield (window := s.window(low, high, age, stale, must[:, low:high]))  # 4, 6
            age, stale = age + 1, window.start  # 5: this forward saw the final tokens of every block before `start`

    return schedule


# --- views: what one forward recomputes and sees ---------------------------------------------------------------------------------------

# (canvas, window) -> what the model is to compute, with logits for the slots of the window. Without visible slots nothing is cached.
View = Callable[[Canvas, Window], Pass]
CacheName = Literal["none", "prefix", "dual", "vicinity", "frozen"]


def scored(window: Window, first: int, shift: int = 0) -> slice:
    """Which rows of a query get logits, if it begins at slot `first` and has no gap: those of the window, or of the slots `shift` before it."""
    return slice(window.start - first - shift, window.end - first - shift)


@has(exact=True)
def full(s: Canvas, window: Window) -> Pass:
    """Recompute the whole canvas (LLaDA)."""
    return Pass(slice(0, s.x.shape[1]), rows=scored(window, 0))


def cached(cache: "CacheName", window_size: int | None = None) -> View:
    """Recompute all at the start of a block, then only from the block on (Fast-dLLM), and prune the far suffix (Streaming-dLLM).

    prefix recomputes the block and all behind it, dual only the block, vicinity the block and VICINITY slots on either side (dInfer).
    frozen is a prefix that is never refreshed: the block, and what was not final when it was last computed (FlashDLM's FreeCache).
    window_size keeps that many slots behind the block, and the last.
    """
    if cache == "none" and window_size is None:
        return full

    def view(s: Canvas, window: Window) -> Pass:
        S = s.x.shape[1]
        if cache == "frozen":
            first, end = window.stale, S
        elif cache == "none" or window.age == 0:
            first, end = 0, S
        else:
            before, behind = {"prefix": (0, S), "dual": (0, 0), "vicinity": (VICINITY, VICINITY)}[cache]
            first, end = max(0, window.start - before), min(S, window.end + behind)
        near = window.end + kept_suffix(window.suffix, window_size) - 1
        if near == S - 1:
            visible, query = slice(0, S), slice(first, end)
        else:  # the last slot stays, and keeps its far position
            visible = torch.arange(near + 1, device=s.x.device)
            visible[-1] = S - 1
            query = slice(first, end) if end <= near else visible[first:end]
        return Pass(query, None if cache == "none" else visible, rows=scored(window, first))

    return view


VICINITY = 16  # slots on either side of the block; dInfer's default


def kept_suffix(suffix: int, window_size: int | None) -> int:
    """How many slots behind the block stay visible: window_size and the last one (Streaming-dLLM counts tokens in code, blocks in the paper)."""
    return suffix if window_size is None or suffix <= window_size else window_size + 1


@has(exact=True)
def block_causal(s: Canvas, window: Window) -> Pass:
    """Recompute what was not final yet; a block sees itself and all before it, so finished K/V never change: the cache is exact (D2F)."""
    mask = block_mask(s.prompt_length, s.block_length, window.stale, window.end, s.x.device)
    return Pass(slice(window.stale, window.end), slice(0, window.end), mask, scored(window, window.stale))


@has(exact=True)
def block_causal_uncached(s: Canvas, window: Window) -> Pass:
    """The definition that `block_causal` must equal: the same mask, everything recomputed."""
    mask = block_mask(s.prompt_length, s.block_length, 0, window.end, s.x.device)
    return Pass(slice(0, window.end), None, mask, scored(window, 0))


@has(exact=True, length=1)
def causal(s: Canvas, window: Window) -> Pass:
    """Predict a block of one token from those before it, each of which is computed once (autoregressive decoding)."""
    end = window.end - 1
    mask = block_mask(0, 1, window.stale, end, s.x.device)
    return Pass(slice(window.stale, end), slice(0, end), mask, scored(window, window.stale, shift=1))


def block_mask(prompt_length: int, block_length: int, first: int, end: int, device=None) -> Tensor:
    """Which of the positions first .. end sees which slot before end, bool [Q, K]: those of its own block, of earlier ones and the prompt.

    With a prompt of 2 and blocks of 2, the blocks of six slots are 0 0 1 1 2 2; slot 3 sees the first four.
    """
    position = torch.arange(end, device=device)
    block = ((position - prompt_length).div(block_length, rounding_mode="floor") + 1).clamp(min=0)
    return block[first:, None] >= block


# --- orders: which tokens are the surest. Each returns a doubt for every cell, and whatever ranks tokens goes by it.

ORDERS: dict[str, Callable[[Scores, torch.Generator], Tensor]] = {
    "low_confidence": lambda scores, generator: scores.doubt,
    "margin": lambda scores, generator: 1 - scores.margin,
    "entropy": lambda scores, generator: scores.entropy,
    "random": lambda scores, generator: torch.rand(scores.doubt.shape, device=scores.doubt.device, generator=generator),
}
OrderName = Literal["low_confidence", "margin", "entropy", "random"]

# --- commit rules: which tokens to write -----------------------------------------------------------------------------------------------

# (scores, candidates, window) -> bool [N, k], pure. Each of the N = b * n lines is one block of one row. A rule may accept nothing: the loop
# then commits the surest candidate of every block that must move, which is why no rule below mentions it.
Rule = Callable[[Scores, Tensor, Window], Tensor]


def rank(doubt: Tensor, candidates: Tensor) -> Tensor:
    """Place of each cell among the candidates of its line, int64 [N, k]: 0 for the least doubt, ties by position, the others last."""
    order = doubt.masked_fill(~candidates, torch.inf).argsort(dim=-1, stable=True)
    return order.argsort(dim=-1)


@has(quota=True)
def quota(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
    """Spread a block's tokens evenly over its forwards, the remainder first, the surest tokens first (LLaDA, low-confidence remasking)."""
    left = candidates.sum(-1, keepdim=True)  # [N, 1]
    return rank(scores.doubt, candidates) < (left + window.forwards - 1) // window.forwards  # rounded up


def threshold_rule(threshold: float | None, strict: bool = False) -> Rule:
    """Every token at least this sure (Fast-dLLM), surer than this if strict (D2F's code); with None, LLaDA's quota."""
    if threshold is None:
        return quota
    return lambda scores, candidates, window: scores.confidence > threshold if strict else scores.confidence >= threshold


def factor_rule(factor: float) -> Rule:
    """The longest run of the surest tokens whose r-th has (r + 1) (1 - confidence) <= factor (Fast-dLLM, the factor rule of its theorem 1).

    The authors' code also takes a last token that fails; we follow the paper.
    """

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        place = rank(scores.doubt, candidates)  # r - 1
        fails = candidates & (scores.confidence < 1 - factor / (place + 2))
        return place < place.masked_fill(~fails, place.shape[-1]).amin(-1, keepdim=True)

    return rule


def local_leap(threshold: float, relaxed_threshold: float, radius: int) -> Rule:
    """The threshold drops to relaxed_threshold within `radius` of an anchor, a candidate that passes the threshold itself (LocalLeap)."""

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        anchors = candidates & (scores.confidence >= threshold)
        reach = min(radius, anchors.shape[-1])
        near = F.max_pool1d(anchors.float()[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0  # [N, k]
        return scores.confidence >= torch.where(near, relaxed_threshold, threshold)

    return rule


def adaptive(threshold: float, confidence_alpha: float, window_size: int | None) -> Rule:
    """The threshold sinks as the visible masks get fewer: threshold * (1 - alpha * (1 - masked share)) (Streaming-dLLM).

    Following the authors' code, the share counts the block and the kept suffix, and a block's first forward uses the plain threshold.
    """

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        kept = kept_suffix(window.suffix, window_size)
        share = (candidates.sum(-1, keepdim=True) + kept) / (candidates.shape[-1] + kept)  # [N, 1]
        alpha = 0.0 if window.age == 0 else confidence_alpha
        return scores.confidence >= threshold * (1 - alpha * (1 - share))

    return rule


# Rules that write to written cells, too, return (cells to write, what to write); MASKED takes a token back.
MASKED = -1

# --- hooks: what else a strategy may do in a forward; related.py has some of each ------------------------------------------------------

# What is done to the logits before they are scored: (logits [b, n * k, V], candidates [b, n * k], window) -> logits.
Adjust = Callable[[Tensor, Tensor, Window], Tensor]

# How much of each token's embedding is added to that of a mask in the forwards to come: (probabilities [b, n * k, V], window) -> weights
# [b, n * k, V]. What was not scored yet, such as the blocks to come, stays a plain mask.
Soften = Callable[[Tensor, Window], Tensor]

# What stands in for `forward` where the logits of canvases that may come next are computed ahead: its arguments and its results.
Ahead = Callable[[Canvas, Window, Pass], tuple[Tensor, int, Tensor]]

# What a second model makes of the tokens that the rule would write: (canvas, window, logits and noise [b, n, V], commit and token [b, n])
# -> the two latter as they are to be, and the token-forwards spent. It has the second `model`.
Guide = Callable[[Canvas, Window, Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor, int]]

# What happens to the rows of a canvas between two forwards: it passes the windows on, and has the number `n` of rows for each prompt.
Search = Callable[[Canvas, Iterator[Window]], Iterator[Window]]

# --- strategies: a schedule, a view and a rule under the paper's name ------------------------------------------------------------------

STRATEGIES: dict[str, Callable[..., Strategy]] = {}


def named(name: str):
    """Enter a builder into STRATEGIES. Its keyword arguments are the settings, a line `name: meaning` of its docstring explains each."""
    return lambda builder: STRATEGIES.setdefault(name, builder)


@named("llada")
def llada(remasking: OrderName = "low_confidence") -> Strategy:
    """LLaDA (arXiv 2502.09992): a fixed number of the surest tokens each forward, the whole canvas recomputed.

    remasking: which are the surest: of the least doubt, the widest margin over the second choice, the least entropy, or any at random
    """
    return Strategy(quota, full, serial, remasking=remasking)


@named("fast-dllm")
def fast_dllm(cache: CacheName = "prefix", threshold: float | None = 0.9, factor: float | None = None) -> Strategy:
    """Fast-dLLM (arXiv 2505.22618): every token that is sure enough, and keys and values reused inside a block.

    cache: what is reused after the refresh at a block's start: none, the prefix, all but the block (dual) or its vicinity; frozen never refreshes
    threshold: commit every token at least this confident; none commits the quota of `steps`
    factor: replaces the threshold: commit the r surest tokens while (r + 1) * (1 - confidence) <= factor
    """
    return Strategy(threshold_rule(threshold) if factor is None else factor_rule(factor), cached(cache), serial)


@named("localleap")
def localleap(threshold: float = 0.9, relaxed_threshold: float = 0.75, radius: int = 4, cache: CacheName = "none") -> Strategy:
    """LocalLeap (arXiv 2510.07081): a lower threshold next to tokens that are sure.

    threshold: kappa; a candidate at least this confident is committed and is an anchor
    relaxed_threshold: tau; what a neighbour of an anchor needs, at most `threshold`
    radius: W; how many tokens away a neighbour may be, on either side
    cache: as in fast-dllm; the paper uses none
    """
    require(relaxed_threshold <= threshold, "relaxed_threshold", relaxed_threshold, f"at most threshold={threshold:g}")
    return Strategy(local_leap(threshold, relaxed_threshold, radius), cached(cache), serial)


@named("streaming")
def streaming(threshold: float = 0.9, window_size: int | None = 96, confidence_alpha: float = 0.3, cache: CacheName = "prefix") -> Strategy:
    """Streaming-dLLM (arXiv 2601.17917): the far suffix pruned, a threshold that sinks as a block fills, exit after the block with EOS.

    threshold: tau0; what a token needs in a block's first forward
    window_size: w; tokens kept visible behind the block, and the canvas's last one; none keeps all
    confidence_alpha: alpha; how far the threshold sinks, 0 for not at all
    cache: as in fast-dllm; the paper uses prefix
    """
    return Strategy(adaptive(threshold, confidence_alpha, window_size), cached(cache, window_size), serial, eos="stop")


@named("d2f")
def d2f(
    block_add_threshold: float = 0.1,
    decoded_token_threshold: float = 0.95,
    skip_threshold: float = 0.9,
    cache: Literal["none", "exact"] = "exact",
) -> Strategy:
    """D2F (arXiv 2508.09192): several blocks in flight over a block-causal mask, whose cache is exact; made for its distilled student.

    block_add_threshold: open the next block when the last is filled this far, 0 to 1
    decoded_token_threshold: a block must move, sure or not, when its predecessor is filled this far, 0 to 1
    skip_threshold: commit every token more confident than this
    cache: exact reuses finished blocks, none recomputes them; the tokens are the same
    """
    view = block_causal if cache == "exact" else block_causal_uncached
    return Strategy(threshold_rule(skip_threshold, strict=True), view, pipeline(block_add_threshold, decoded_token_threshold), eos="stop")


@named("ar")
def ar() -> Strategy:
    """Autoregressive decoding: left to right, one token a forward, an exact cache; the baseline, for a model trained to predict the next token."""
    return Strategy(quota, causal, serial, eos="stop")


# --- checks: all of them, before any work ----------------------------------------------------------------------------------------------


def build(name: str, **given) -> Strategy:
    """The strategy of this name with these settings; ValueError if either is unknown or out of range."""
    builder = find_builder(name)
    for setting in given:
        if setting not in options(builder):
            takers = [other for other, builder in STRATEGIES.items() if setting in options(builder)]
            hint = f"that is a setting of {', '.join(takers)}" if takers else f"it takes {', '.join(options(builder)) or 'none'}"
            raise ValueError(f"strategy {name} has no setting {setting}: {hint}")
    check_kinds(builder, given)
    for setting, value in given.items():
        check_range(setting, value)
    if given.get("threshold") is not None and given.get("factor") is not None:
        raise ValueError(f"threshold={given['threshold']:g} and factor={given['factor']:g} are two rules for the same choice: give one")
    return builder(**given)


@functools.cache
def find_builder(name: str) -> Callable[..., Strategy]:
    """The builder of a named strategy, or of a rule of your own: `my_rule.py:rule` is the function `rule` of that file, which is run."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    file, _, function = name.rpartition(":")
    if not file.endswith(".py"):
        raise ValueError(f"unknown strategy {name!r}: choose one of {', '.join(STRATEGIES)}, or FILE.py:RULE for a rule of your own")
    if not Path(file).is_file():
        raise ValueError(f"there is no file {file}")
    try:
        rule = runpy.run_path(file).get(function)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{file} does not run: {type(error).__name__}: {error}") from None
    if not callable(rule):
        raise ValueError(f"{file} defines no function {function!r}")

    def builder(cache: CacheName = "prefix") -> Strategy:
        """A rule of your own.

        cache: as in fast-dllm
        """
        return Strategy(rule, cached(cache), serial)

    return builder


def plan(strategy: str | Strategy, settings: dict, template_length: int | None = None) -> tuple[Strategy, Settings]:
    """Sort the settings into those of the strategy and those of all, and check both. A template's length decides gen_length."""
    common = {name: value for name, value in settings.items() if name in options(Settings)}
    own = {name: value for name, value in settings.items() if name not in common}
    if isinstance(strategy, str):
        strategy = build(strategy, **own)
    elif own:
        raise ValueError(f"unknown setting {next(iter(own))}: a Strategy built by hand takes only {', '.join(options(Settings))}")
    check_kinds(Settings, common)
    chosen = Settings(**common)
    if template_length is not None:
        require("gen_length" not in common, "gen_length", chosen.gen_length, "none beside a template, whose length it is")
        chosen = replace(chosen, gen_length=template_length)
    if chosen.temperature is None:
        chosen = replace(chosen, temperature=strategy.temperature)
    only = traits(strategy.rule).length or traits(strategy.view).length or traits(strategy.schedule).length
    if chosen.block_length is None:
        chosen = replace(chosen, block_length=only or strategy.block_length or chosen.gen_length)
    require(chosen.block_length >= 1, "block_length", chosen.block_length, "at least 1")
    if template_length is not None:
        chosen = replace(chosen, gen_length=-(-template_length // chosen.block_length) * chosen.block_length)
    G, k, steps = chosen.gen_length, chosen.block_length, chosen.steps
    require(G >= 1, "gen_length", G, "at least 1")
    require(only in (None, k), "block_length", k, f"{only}, which is what this strategy was made for")
    if G % k:
        raise ValueError(f"gen_length {G} is not a multiple of block_length {k}: the nearest is {nearest_multiple(G, k)}")
    require(steps is None or steps >= 1, "steps", steps, "at least 1")
    if traits(strategy.rule).quota and steps and steps % (G // k):
        raise ValueError(f"steps {steps} do not divide evenly among {G // k} blocks: the nearest is {nearest_multiple(steps, G // k)}")
    require(0 <= chosen.temperature < torch.inf, "temperature", chosen.temperature, "at least 0")
    require(0 <= chosen.cfg_scale < torch.inf, "cfg_scale", chosen.cfg_scale, "at least 0")
    require(0 <= chosen.seed < 2**63, "seed", chosen.seed, "at least 0 and below 2**63")
    return strategy, chosen


def check_model(model: LLaDA, strategy: Strategy) -> None:
    """Refuse a strategy that asks for something which this model does not have, or for a guide whose tokens are others than the model's."""
    if strategy.soften and not hasattr(model, "wte"):
        raise ValueError("softened masks are mixtures of embeddings, and this model has none")
    skip = strategy.ahead.skip if strategy.ahead else None
    if isinstance(skip, tuple) and (beyond := [layer for layer in skip if layer >= model.config.n_layers]):
        raise ValueError(f"skip names layer {beyond[0]}, but the model's {model.config.n_layers} layers are numbered from 0")
    if strategy.guide and strategy.guide.model is None:
        raise ValueError("a guide is needed: a model that predicts the next token, with the same vocabulary")
    for name in ("vocab_size", "mask_token_id", "eos_token_id") if strategy.guide else ():
        theirs, ours = getattr(strategy.guide.model.config, name), getattr(model.config, name)
        require(theirs == ours, f"the guide's {name}", theirs, f"{ours} as in the model it guides")


import related  # noqa: E402, F401  whose builders enter themselves into STRATEGIES: everything they need stands above

if __name__ == "__main__":
    from lab.command_line import run

    run()
