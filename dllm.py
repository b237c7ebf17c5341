"""Diffusion-LLM decoding: every strategy is a schedule, a view and a commit rule on one loop (`steps`, below).

    schedule  which blocks are open now              serial | pipeline
    view      which positions one forward recomputes, and which cache slots they see     (query, visible, mask)
    rule      which of the scored tokens to commit   quota | threshold | factor | local_leap | adaptive

The canvas is the prompt followed by `gen_length` masks. Left out on purpose: the network (model.py), scores from logits (kernels.py), files
(load_weights.py), Dream's shifted logits, likelihood evaluation.

Papers: LLaDA (arXiv 2502.09992), Fast-dLLM (2505.22618), LocalLeap (2510.07081), Streaming-dLLM (2601.17917), D2F (2508.09192).

Letters: B batch, b its unfinished rows, S canvas, P prompt, k block length, n blocks in the window (or on the canvas), Q positions computed
in one forward, V vocabulary.
"""

import argparse
import functools
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, NamedTuple, Union, get_args, get_origin

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import Scores
from load_weights import DTYPES, check_memory, load_config, load_model, load_tokenizer
from model import Cache, Config, LLaDA, Slots

EMBEDDED = Path(__file__).parent / "weights" / "tiny"
DEFAULT = "fast-dllm"  # the strategy where none is named

# --- what a caller sets, and what comes back -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What every strategy understands.

    gen_length: tokens to write after the prompt; a multiple of block_length
    block_length: tokens a block; a strategy works through the answer block by block (default the strategy's: 32, or 1 for ar)
    steps: forwards in all; llada spreads the tokens evenly over them (default one token each), for the others a cap (default none)
    temperature: 0 takes the likeliest token, above 0 samples
    cfg_scale: weight of classifier-free guidance; above 0 every forward runs twice as many rows, half of them with the prompt masked
    eos: fill decodes every block, stop opens no block after an EOS, suppress never writes EOS, defer writes it last (default the strategy's)
    seed: of all randomness: sampling, and random remasking
    compile: fuse the scores with torch.compile (default on CUDA only)
    """

    gen_length: int = 128
    block_length: int | None = None
    steps: int | None = None
    temperature: float = 0.0
    cfg_scale: float = 0.0
    eos: Literal["fill", "stop", "suppress", "defer"] | None = None
    seed: int = 0
    compile: bool | None = None


@dataclass(frozen=True)
class Strategy:
    """A way to decode; STRATEGIES holds the named ones, and any combination that makes sense can be built by hand."""

    rule: "Rule"
    view: "View"
    schedule: "Schedule"
    eos: str = "fill"
    remasking: str = "low_confidence"
    block_length: int = 32  # where the caller names none

    @property
    def exact(self) -> bool:
        """Whether no forward attends to a stale slot."""
        return self.view in EXACT_VIEWS

    def __post_init__(self):
        if self.schedule is not serial and not self.exact:
            raise ValueError("pipelined blocks need a view without stale slots: an approximate cache is refreshed block by block")
        if self.schedule is not serial and self.rule is quota:
            raise ValueError("a quota of tokens per step has no meaning for pipelined blocks, which share their steps: use a threshold")


@dataclass(frozen=True)
class Window:
    """What a schedule opens for one forward: the slots start .. end, n blocks of k."""

    start: int
    end: int
    stale: int  # the first slot whose cached keys and values are out of date; 0 at the start of a block that refreshes all
    suffix: int  # slots of the canvas behind `end`
    forwards: int | None  # that a quota has left for this block, this one included; None where blocks share their forwards
    must: Tensor  # bool [b, n]: blocks in which a forward commits at least one token


class Look(NamedTuple):
    """What a view chooses for one forward."""

    first: int  # the first slot of `query`, which is contiguous from there to the window's end
    query: Slots  # positions to recompute
    visible: Slots | None  # cache slots they attend to; None: they attend to each other, and nothing is cached
    mask: Tensor | None = None  # bool [Q, K]: which query sees which slot; None: every one
    shift: int = 0  # the logits of a slot are about the token so many places after it


@dataclass(frozen=True)
class Step:
    """One forward: what was computed, scored and committed. Tensors [b, n * k] lie over the slots window.start .. window.end."""

    nfe: int  # forwards so far, this one included
    rows: int  # token-forwards of this one: positions computed, times the rows of the batch
    live: Tensor  # int64 [b]: the rows of the batch that were unfinished
    window: Window
    look: Look
    scores: Scores  # each [b, n * k]
    candidates: Tensor  # bool: masked, and in a block that is open for its row
    commit: Tensor  # bool: written now
    x: Tensor  # int64 [B, S]: the canvas itself, which the next step writes; clone it to keep it
    logits: Tensor  # [b, n * k, V]: what the scores were made from; whoever keeps the step keeps them
    seconds: float  # that this forward took, with its scores and its commit, but without whoever looks at the step


@dataclass
class Result:
    """A finished decode. Padding of shorter prompts stands on the left of `tokens`."""

    tokens: Tensor  # int64 [B, S]
    lengths: list[int]  # tokens of each answer before its first EOS, the prompt not counted
    nfe: int  # forwards that were run
    forwards: list[int]  # forwards that could commit something in each row; alone, a row's nfe
    rows: int  # token-forwards: positions computed, summed over forwards and rows of the batch
    seconds: float
    prompt_length: int  # P, padding included

    def answer(self, row: int = 0) -> list[int]:
        """The tokens of an answer before its first EOS."""
        return self.tokens[row, self.prompt_length :][: self.lengths[row]].tolist()

    def counters(self) -> dict[str, float]:
        """What every run prints. Tokens are those before the first EOS, so that padding never counts as speed."""
        tokens = sum(self.lengths)
        return {
            "forwards": self.nfe,
            "rows": self.rows,
            "tokens": tokens,
            "tokens_per_forward": round(tokens / self.nfe, 2),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 1),
        }


# --- the loop --------------------------------------------------------------------------------------------------------------------------


def generate(model: LLaDA, prompt, strategy: "str | Strategy" = DEFAULT, **settings) -> Result:
    """Decode to the end and return the canvas with its counters. Arguments and errors as for `decode`."""
    canvas = prepare(model, prompt, strategy, settings)
    return finish(canvas, steps(canvas))


def decode(model: LLaDA, prompt, strategy: "str | Strategy" = DEFAULT, **settings) -> Iterator[Step]:
    """Check everything, then return an iterator that yields once per forward.

    prompt    int64 [B, P], or a list of token ids, or a list of such lists of any lengths (they are padded on the left)
    strategy  a name in STRATEGIES, or a Strategy
    settings  those of `Settings` and, with a name, those of its builder

    Raises ValueError, before any work, naming the setting and what would be valid; StepLimit while iterating, if `steps` is a cap and is hit.
    """
    return steps(prepare(model, prompt, strategy, settings))


@torch.inference_mode()
def steps(s: "Canvas") -> Iterator[Step]:
    """The loop that every strategy runs on."""
    rule, settings = s.strategy.rule, s.settings
    generator = torch.Generator(s.x.device).manual_seed(settings.seed)
    nfe, began = 0, time.perf_counter()
    for window in s.strategy.schedule(s):
        if nfe == settings.steps and rule is not quota:
            raise StepLimit(f"steps={nfe} forwards are spent, {int(s.masked().sum())} masks are left: raise steps or lower the threshold")
        look = s.strategy.view(s, window)
        logits, rows = forward(s, window, look)  # [b, n * k, V]
        nfe += 1

        logits[..., s.mask_id] = -torch.inf  # after guidance: -inf minus -inf would be NaN
        if s.eos == "suppress":
            logits[..., s.eos_id] = -torch.inf
        scores = s.score(logits, kernels.gumbel(logits, settings.temperature, generator) if settings.temperature else None)
        if s.strategy.remasking == "random":
            scores = scores._replace(doubt=torch.rand(scores.doubt.shape, device=s.x.device, generator=generator))
        if s.eos == "defer":
            scores = scores._replace(doubt=scores.doubt.masked_fill(scores.token == s.eos_id, kernels.LARGEST))

        candidates = s.candidates(window)  # [b, n * k]
        commit = choose(rule, scores, candidates, window)
        s.write(window, commit, scores.token)
        live = s.live
        s.retire()  # reads the canvas, and so waits for the device: the time below is the whole forward's
        yield Step(nfe, rows, live, window, look, scores, candidates, commit, s.x, logits, time.perf_counter() - began)
        began = time.perf_counter()


def forward(s: "Canvas", window: Window, look: Look) -> tuple[Tensor, int]:
    """Logits [b, n * k, V] of the window's slots, guided if asked for, and the number of token-forwards spent."""
    model, scale = s.model, s.settings.cfg_scale
    ids = s.x[s.live][:, look.query]  # [b, Q]
    start = s.start[s.live] if s.padded else None
    if scale:  # the rows, then the same with every prompt token masked (unsupervised guidance, arXiv 2410.18514)
        in_prompt = model.indices(look.query) < s.prompt_length
        ids = torch.cat((ids, ids.masked_fill(in_prompt, s.mask_id)))  # [2b, Q]
        start = start if start is None else start.repeat(2)
    if look.visible is not None and s.cache is None:
        s.cache = model.new_cache(len(ids), s.x.shape[1])
    before = look.first + look.shift
    scored = slice(window.start - before, window.end - before)
    logits = model(ids, look.query, look.visible, look.mask, s.cache if look.visible is not None else None, scored, start)
    if scale:
        guided, unguided = logits.chunk(2)
        logits = unguided + (scale + 1) * (guided - unguided)
    return logits, ids.numel()


def choose(rule: "Rule", scores: Scores, candidates: Tensor, window: Window) -> Tensor:
    """Which tokens to commit, bool [b, n * k]: what the rule accepts, and the surest candidate of a block that must move and has none."""
    by_block = lambda t: t.unflatten(-1, window.must.shape[1:] + (-1,)).flatten(0, 1)  # noqa: E731  [b, n * k] -> [b * n, k]
    scores, candidates = Scores(*map(by_block, scores)), by_block(candidates)
    commit = rule(scores, candidates, window) & candidates
    stuck = window.must.flatten()[:, None] & ~commit.any(-1, keepdim=True)  # [b * n, 1]
    commit |= stuck & candidates & (rank(scores.doubt, candidates) == 0)
    return commit.view(len(window.must), -1)


def finish(s: "Canvas", stream: Iterator[Step]) -> Result:
    """Run the steps of this canvas to their end and count."""
    forwards = torch.zeros_like(s.opened)  # [B]
    rows, seconds = 0, 0.0
    for step in stream:
        rows, seconds = rows + step.rows, seconds + step.seconds
        forwards[step.live] += step.candidates.any(-1)
    lengths = (s.x[:, s.prompt_length :] != s.eos_id).cumprod(-1).sum(-1).tolist()  # [B]
    return Result(s.x, lengths, step.nfe, forwards.tolist(), rows, seconds, s.prompt_length)


class StepLimit(RuntimeError):
    """`steps` was a cap, and the decode is not done."""


def prepare(model: LLaDA, prompt, strategy: "str | Strategy", settings: dict) -> "Canvas":
    """Check all that can be wrong before the first forward, and lay out the canvas."""
    strategy, chosen = plan(strategy, settings)
    return Canvas(model, check_prompt(prompt, model.config, chosen), strategy, chosen)


# --- the canvas ------------------------------------------------------------------------------------------------------------------------


class Canvas:
    """A decode under way: prompt and answer of a batch, and which rows are unfinished. The answer starts as masks; what is written stays."""

    def __init__(self, model: LLaDA, prompts: list[list[int]], strategy: Strategy, settings: Settings):
        self.model, self.strategy, self.settings = model, strategy, settings
        self.mask_id, self.eos_id = model.config.mask_token_id, model.config.eos_token_id
        self.eos = settings.eos or strategy.eos
        self.block_length, self.blocks = settings.block_length, settings.gen_length // settings.block_length
        B, P = len(prompts), max(map(len, prompts))
        self.check_memory(B, P + settings.gen_length)
        compiled = model.device.type == "cuda" if settings.compile is None else settings.compile
        self.score = compiled_score(model.device) if compiled else kernels.score
        self.prompt_length = P
        self.padded = any(len(row) < P for row in prompts)
        padded = [[self.eos_id] * (P - len(row)) + row + [self.mask_id] * settings.gen_length for row in prompts]
        self.x = torch.tensor(padded, device=model.device)  # [B, S]
        self.start = torch.tensor([P - len(row) for row in prompts], device=model.device)  # [B]: each row's first real slot
        self.live = torch.arange(B, device=model.device)  # [b]
        self.opened = torch.zeros(B, dtype=torch.int64, device=model.device)  # [B]: blocks opened so far
        self.cache: Cache | None = None  # with as many rows as `live` (twice that under guidance)

    def check_memory(self, B: int, S: int) -> None:
        config, passes = self.model.config, B * (2 if self.settings.cfg_scale else 1)
        slots = S * 2 * config.n_layers * config.kv_heads * config.head_width * self.model.dtype.itemsize
        logits = self.block_length * config.vocab_size * 4 * 4  # float32: logits, those of the step before, odds, odds * log odds
        check_memory(f"the cache and logits of {B} rows of {S} tokens", passes * (slots + logits), self.model.device)

    def answers(self) -> Tensor:
        """The answers of the unfinished rows by block, int64 [b, n, k]: a copy."""
        return self.x[self.live, self.prompt_length :].unflatten(-1, (self.blocks, self.block_length))

    def masked(self) -> Tensor:
        return self.answers() == self.mask_id  # bool [b, n, k]

    def is_open(self) -> Tensor:
        """Which blocks each unfinished row has opened, bool [b, n, 1]."""
        return (torch.arange(self.blocks, device=self.x.device) < self.opened[self.live, None])[..., None]

    def candidates(self, window: Window) -> Tensor:
        """The cells of the window that may be written, bool [b, n * k]."""
        return (self.masked() & self.is_open()).flatten(1)[:, window.start - self.prompt_length : window.end - self.prompt_length]

    def write(self, window: Window, commit: Tensor, token: Tensor) -> None:
        """Put the committed tokens on the canvas; under eos="stop", end every row whose open blocks are full and hold an EOS."""
        span = slice(window.start, window.end)
        self.x[self.live, span] = torch.where(commit, token, self.x[self.live, span])
        if self.eos == "stop":
            masked = self.masked()
            ended = self.has_eos() & ~(masked & self.is_open()).flatten(1).any(-1)  # [b]
            rest = (masked & ended[:, None, None]).flatten(1)
            self.x[self.live, self.prompt_length :] = self.answers().flatten(1).masked_fill(rest, self.eos_id)

    def has_eos(self) -> Tensor:
        return (self.answers() == self.eos_id).flatten(1).any(-1)  # bool [b]

    def retire(self) -> None:
        """Drop the rows that have no mask left, from the batch and from the cache: a finished row costs nothing."""
        unfinished = self.masked().flatten(1).any(-1)  # [b]
        if unfinished.all():
            return
        if self.cache is not None:
            passes = 2 if self.settings.cfg_scale else 1
            self.cache.keep(unfinished.repeat(passes).nonzero()[:, 0])
        self.live = self.live[unfinished]


# --- schedules: which blocks are open --------------------------------------------------------------------------------------------------

Schedule = Callable[[Canvas], Iterator[Window]]


def serial(s: Canvas) -> Iterator[Window]:
    """One block after the other, all rows of the batch together (LLaDA's semi-autoregressive sampling)."""
    stale = 0
    for block in range(s.blocks):
        s.opened.fill_(block + 1)
        start = s.prompt_length + block * s.block_length
        end, forwards = start + s.block_length, (s.settings.steps or s.settings.gen_length) // s.blocks
        if not s.strategy.exact:
            stale = 0  # what was written since the last refresh has changed every other slot's keys and values
        while (must := s.masked()[:, block].any(-1)).any():
            yield Window(start, end, stale, s.x.shape[1] - end, forwards, must[:, None])
            stale, forwards = start, forwards - 1


def pipeline(block_add_threshold: float, decoded_token_threshold: float) -> Schedule:
    """Several blocks at once: the next opens when the last is partly full, and must move when its predecessor nearly is (D2F).

    The numbers at line ends are the steps in docs/d2f.md. Each row of a batch runs its own pipeline; the window spans them all.
    """

    def schedule(s: Canvas) -> Iterator[Window]:
        stale = 0
        while len(s.live):
            masked = s.masked()
            progress = (~masked).sum(-1) / s.block_length  # [b, n]
            before = F.pad(progress, (1, 0), value=1.0)  # [b, n + 1]: progress of the block to the left, the prompt being full
            opened = s.opened[s.live]
            add = (opened < s.blocks) & (before.gather(1, opened[:, None])[:, 0] >= block_add_threshold)  # 1
            if s.eos == "stop":
                add &= ~s.has_eos()
            s.opened[s.live] = opened + add
            must = before[:, :-1] >= decoded_token_threshold  # 2
            full = (~masked.any(-1)).cumprod(-1).sum(-1)  # [b]: leading blocks without a mask
            low, high = int(full.min()), int(s.opened[s.live].max())
            start, end = (s.prompt_length + block * s.block_length for block in (low, high))
            yield Window(start, end, stale, s.x.shape[1] - end, None, must[:, low:high])  # 4, 6
            stale = start  # 5: this forward saw the final tokens of every block before `start`

    return schedule


# --- views: what one forward recomputes and sees ---------------------------------------------------------------------------------------

View = Callable[[Canvas, Window], Look]


def full(s: Canvas, window: Window) -> Look:
    """Recompute the whole canvas (LLaDA)."""
    return Look(0, slice(0, s.x.shape[1]), None)


def cached(cache: Literal["none", "prefix", "dual"], window_size: int | None = None) -> View:
    """Recompute all at the start of a block, then only from the block on (Fast-dLLM), and prune the far suffix (Streaming-dLLM).

    prefix recomputes the block and all behind it, dual only the block. window_size keeps that many slots behind the block, and the last.
    """
    if cache == "none" and window_size is None:
        return full

    def view(s: Canvas, window: Window) -> Look:
        S = s.x.shape[1]
        near = window.end + kept_suffix(window.suffix, window_size) - 1
        first = 0 if cache == "none" else window.stale
        if near == S - 1:
            visible, query = slice(0, S), slice(first, S)
        else:  # the last slot stays, and keeps its far position
            visible = torch.arange(near + 1, device=s.x.device)
            visible[-1] = S - 1
            query = visible[first:]
        if cache == "dual" and first:
            query = slice(first, window.end)
        return Look(first, query, None if cache == "none" else visible)

    return view


def kept_suffix(suffix: int, window_size: int | None) -> int:
    """How many slots behind the block stay visible: window_size and the last one (Streaming-dLLM counts tokens in code, blocks in the paper)."""
    return suffix if window_size is None or suffix <= window_size else window_size + 1


def block_causal(s: Canvas, window: Window) -> Look:
    """Recompute what was not final yet; a block sees itself and all before it, so finished K/V never change: the cache is exact (D2F)."""
    mask = block_mask(s.prompt_length, s.block_length, window.stale, window.end, s.x.device)
    return Look(window.stale, slice(window.stale, window.end), slice(0, window.end), mask)


def block_causal_uncached(s: Canvas, window: Window) -> Look:
    """The definition that `block_causal` must equal: the same mask, everything recomputed."""
    return Look(0, slice(0, window.end), None, block_mask(s.prompt_length, s.block_length, 0, window.end, s.x.device))


def causal(s: Canvas, window: Window) -> Look:
    """Predict a block of one token from those before it, each of which is computed once (autoregressive decoding)."""
    end = window.end - 1
    return Look(window.stale, slice(window.stale, end), slice(0, end), block_mask(0, 1, window.stale, end, s.x.device), shift=1)


def block_mask(prompt_length: int, block_length: int, first: int, end: int, device=None) -> Tensor:
    """Which of the positions first .. end sees which slot before end, bool [Q, K]: those of its own block, of earlier ones and the prompt.

    With a prompt of 2 and blocks of 2, the blocks of six slots are 0 0 1 1 2 2; slot 3 sees the first four.
    """
    position = torch.arange(end, device=device)
    block = ((position - prompt_length).div(block_length, rounding_mode="floor") + 1).clamp(min=0)
    return block[first:, None] >= block


EXACT_VIEWS = (full, block_causal, block_causal_uncached, causal)

# --- commit rules: which tokens to write -----------------------------------------------------------------------------------------------

# (scores, candidates, window) -> bool [N, k], pure. Each of the N = b * n lines is one block of one row. A rule may accept nothing: the loop
# then commits the surest candidate of every block that must move, which is why no rule below mentions it.
Rule = Callable[[Scores, Tensor, Window], Tensor]


def rank(doubt: Tensor, candidates: Tensor) -> Tensor:
    """Place of each cell among the candidates of its line, int64 [N, k]: 0 for the least doubt, ties by position, the others last."""
    order = doubt.masked_fill(~candidates, torch.inf).argsort(dim=-1, stable=True)
    return order.argsort(dim=-1)


def quota(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
    """Spread a block's tokens evenly over its forwards, the remainder first, the surest tokens first (LLaDA, low-confidence remasking)."""
    left = candidates.sum(-1, keepdim=True)  # [N, 1]
    return rank(scores.doubt, candidates) < (left + window.forwards - 1) // window.forwards  # rounded up


def threshold_rule(threshold: float, strict: bool = False) -> Rule:
    """Every token at least this sure (Fast-dLLM); surer than this if strict (D2F's code)."""
    return lambda scores, candidates, window: scores.confidence > threshold if strict else scores.confidence >= threshold


def factor_rule(factor: float) -> Rule:
    """The longest run of the surest tokens whose r-th has (r + 1) (1 - confidence) <= factor (Fast-dLLM, the factor rule of its theorem 1).

    The authors' code also takes a last token that fails; we follow the paper.
    """

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        place = rank(scores.doubt, candidates)  # r - 1
        fails = candidates & (scores.confidence < 1 - factor / (place + 2))
        first = place.masked_fill(~fails, place.shape[-1]).amin(-1, keepdim=True)  # [N, 1]
        return place < first

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
        alpha = confidence_alpha if window.stale else 0.0
        return scores.confidence >= threshold * (1 - alpha * (1 - share))

    return rule


# --- strategies: a schedule, a view and a rule under the paper's name ------------------------------------------------------------------

STRATEGIES: dict[str, Callable[..., Strategy]] = {}


def named(name: str):
    """Enter a builder into STRATEGIES. Its keyword arguments are the settings, a line `name: meaning` of its docstring explains each."""
    return lambda builder: STRATEGIES.setdefault(name, builder)


CacheName = Literal["none", "prefix", "dual"]


@named("llada")
def llada(remasking: Literal["low_confidence", "random"] = "low_confidence") -> Strategy:
    """LLaDA (arXiv 2502.09992): a fixed number of the surest tokens each forward, the whole canvas recomputed.

    remasking: low_confidence commits the surest tokens, random any
    """
    return Strategy(quota, full, serial, remasking=remasking)


@named("fast-dllm")
def fast_dllm(cache: CacheName = "prefix", threshold: float | None = 0.9, factor: float | None = None) -> Strategy:
    """Fast-dLLM (arXiv 2505.22618): every token that is sure enough, and keys and values reused inside a block.

    cache: what is reused between the refreshes at each block's start: none, the prefix, or both sides (dual)
    threshold: commit every token at least this confident; none commits the quota of `steps`
    factor: replaces the threshold: commit the r surest tokens while (r + 1) * (1 - confidence) <= factor
    """
    if factor is not None:
        require(factor >= 0, "factor", factor, "at least 0")
        return Strategy(factor_rule(factor), cached(cache), serial)
    if threshold is None:
        return Strategy(quota, cached(cache), serial)
    require(threshold >= 0, "threshold", threshold, "at least 0")
    return Strategy(threshold_rule(threshold), cached(cache), serial)


@named("localleap")
def localleap(threshold: float = 0.9, relaxed_threshold: float = 0.75, radius: int = 4, cache: CacheName = "none") -> Strategy:
    """LocalLeap (arXiv 2510.07081): a lower threshold next to tokens that are sure.

    threshold: kappa; a candidate at least this confident is committed and is an anchor
    relaxed_threshold: tau; what a neighbour of an anchor needs, at most `threshold`
    radius: W; how many tokens away a neighbour may be, on either side
    cache: as in fast-dllm; the paper uses none
    """
    require(threshold >= 0, "threshold", threshold, "at least 0")
    require(0 <= relaxed_threshold <= threshold, "relaxed_threshold", relaxed_threshold, f"between 0 and threshold={threshold:g}")
    require(radius >= 0, "radius", radius, "at least 0")
    return Strategy(local_leap(threshold, relaxed_threshold, radius), cached(cache), serial)


@named("streaming")
def streaming(threshold: float = 0.9, window_size: int | None = 96, confidence_alpha: float = 0.3, cache: CacheName = "prefix") -> Strategy:
    """Streaming-dLLM (arXiv 2601.17917): the far suffix pruned, a threshold that sinks as a block fills, exit after the block with EOS.

    threshold: tau0; what a token needs in a block's first forward
    window_size: w; tokens kept visible behind the block, and the canvas's last one; none keeps all
    confidence_alpha: alpha; how far the threshold sinks, 0 for not at all
    cache: as in fast-dllm; the paper uses prefix
    """
    require(threshold >= 0, "threshold", threshold, "at least 0")
    require(window_size is None or window_size >= 0, "window_size", window_size, "at least 0")
    require(0 <= confidence_alpha <= 1, "confidence_alpha", confidence_alpha, "between 0 and 1")
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
    require(0 <= block_add_threshold <= 1, "block_add_threshold", block_add_threshold, "between 0 and 1")
    require(0 <= decoded_token_threshold <= 1, "decoded_token_threshold", decoded_token_threshold, "between 0 and 1")
    require(skip_threshold >= 0, "skip_threshold", skip_threshold, "at least 0")
    view = block_causal if cache == "exact" else block_causal_uncached
    return Strategy(threshold_rule(skip_threshold, strict=True), view, pipeline(block_add_threshold, decoded_token_threshold), eos="stop")


@named("ar")
def ar() -> Strategy:
    """Autoregressive decoding: left to right, one token a forward, an exact cache; the baseline, for a model trained to predict the next token."""
    return Strategy(quota, causal, serial, eos="stop", block_length=1)


# --- checks: all of them, before any work ----------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """A setting as its function declares it: the command line, the checks and the strategy table are all made from these."""

    name: str
    kind: type  # int, float, bool or str
    choices: tuple  # of a Literal, else empty
    optional: bool  # None is a value, too
    default: object
    meaning: str


@functools.cache
def options(function: Callable) -> dict[str, Option]:
    """The keyword arguments of a builder or of a dataclass, with their meanings from its docstring and those of its bases."""
    documented = "\n".join(each.__doc__ for each in getattr(function, "__mro__", [function]))
    meanings = dict(re.findall(r"^ +(\w+): (.+)$", documented, re.MULTILINE))
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        choices = get_args(parts[0])
        found[name] = Option(name, str if choices else parts[0], choices, NoneType in parts, parameter.default, meanings[name])
    return found


def require(holds: bool, name: str, value, valid: str) -> None:
    if not holds:  # also for NaN, which compares false with everything
        raise ValueError(f"{name} is {value!r}, expected {valid}")


def check_kinds(function: Callable, given: dict) -> None:
    """Refuse values of another type than the function declares, or outside its choices."""
    for name, value in given.items():
        option = options(function)[name]
        if value is None and option.optional:
            continue
        if option.choices:
            require(value in option.choices, name, value, "one of " + ", ".join(option.choices))
        right = isinstance(value, (int, float) if option.kind is float else option.kind)
        require(right and isinstance(value, bool) == (option.kind is bool), name, value, f"a value of type {option.kind.__name__}")


def build(name: str, **given) -> Strategy:
    """The strategy of this name with these settings; ValueError if either is unknown or out of range."""
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}: choose one of {', '.join(STRATEGIES)}")
    for setting in given:
        if setting not in options(STRATEGIES[name]):
            takers = [other for other, builder in STRATEGIES.items() if setting in options(builder)]
            hint = f"that is a setting of {', '.join(takers)}" if takers else f"it takes {', '.join(options(STRATEGIES[name]))}"
            raise ValueError(f"strategy {name} has no setting {setting}: {hint}")
    check_kinds(STRATEGIES[name], given)
    if given.get("threshold") is not None and given.get("factor") is not None:
        raise ValueError(f"threshold={given['threshold']:g} and factor={given['factor']:g} are two rules for the same choice: give one")
    return STRATEGIES[name](**given)


def plan(strategy: str | Strategy, settings: dict) -> tuple[Strategy, Settings]:
    """Sort the settings into those of the strategy and those of all, and check both."""
    common = {name: value for name, value in settings.items() if name in options(Settings)}
    own = {name: value for name, value in settings.items() if name not in common}
    if isinstance(strategy, str):
        strategy = build(strategy, **own)
    elif own:
        raise ValueError(f"unknown setting {next(iter(own))}: a Strategy built by hand takes only {', '.join(options(Settings))}")
    check_kinds(Settings, common)
    chosen = Settings(**common)
    if chosen.block_length is None:
        chosen = replace(chosen, block_length=strategy.block_length)
    G, k, steps = chosen.gen_length, chosen.block_length, chosen.steps
    require(k >= 1, "block_length", k, "at least 1")
    require(G >= 1, "gen_length", G, "at least 1")
    require(strategy.view is not causal or k == 1, "block_length", k, "1: a model that predicts the next token writes one at a time")
    if G % k:
        raise ValueError(f"gen_length {G} is not a multiple of block_length {k}: the nearest is {nearest_multiple(G, k)}")
    require(steps is None or steps >= 1, "steps", steps, "at least 1")
    if strategy.rule is quota and steps and steps % (G // k):
        raise ValueError(f"steps {steps} do not divide evenly among {G // k} blocks: the nearest is {nearest_multiple(steps, G // k)}")
    require(0 <= chosen.temperature < torch.inf, "temperature", chosen.temperature, "at least 0")
    require(0 <= chosen.cfg_scale < torch.inf, "cfg_scale", chosen.cfg_scale, "at least 0")
    require(0 <= chosen.seed < 2**63, "seed", chosen.seed, "at least 0 and below 2**63")
    return strategy, chosen


def nearest_multiple(value: int, of: int) -> int:
    return max(1, round(value / of)) * of


def check_prompt(prompt, config: Config, settings: Settings) -> list[list[int]]:
    """One prompt or several, as a tensor or as lists, to a list of lists of ids that fit the model."""
    rows = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
    if not rows or not isinstance(rows[0], Sequence):
        rows = [rows]
    for number, row in enumerate(rows):
        which = f"prompt {number}" if len(rows) > 1 else "the prompt"
        if not row:
            raise ValueError(f"{which} is empty: give at least one token")
        if config.mask_token_id in row:
            raise ValueError(f"{which} holds the mask token, id {config.mask_token_id}, which marks what is to be written")
        if outside := [token for token in row if not (isinstance(token, int) and 0 <= token < config.vocab_size)]:
            raise ValueError(f"{which} holds the id {outside[0]}, but the vocabulary ends at {config.vocab_size - 1}")
        if len(row) + settings.gen_length > config.max_sequence_length:
            raise ValueError(
                f"{which} has {len(row)} tokens, gen_length is {settings.gen_length}: together more than the model's {config.max_sequence_length}"
            )
    return [list(row) for row in rows]


@functools.cache
def compiled_score(device: torch.device):
    return kernels.compiled(device)


# --- command line ----------------------------------------------------------------------------------------------------------------------


def strategy_table() -> str:
    """Every strategy with its settings, their defaults and meanings, as text."""
    lines = []
    for name, builder in STRATEGIES.items():
        lines.append(f"{name}\n  {inspect.getdoc(builder).splitlines()[0]}")
        for option in options(builder).values():
            lines.append(f"    --{option.name.replace('_', '-')} {shown(option.default)}: {option.meaning}")
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """Errors are one line, --gen_length is --gen-length, and the flags of settings come from their declarations."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([re.sub(r"^--\w+", lambda flag: flag[0].replace("_", "-"), arg) for arg in args], namespace)

    def add_option(self, option: Option, note: str = "") -> None:
        """Add the flag of a setting. What is not given is absent, so that no default stands here a second time."""
        choices = f" ({' | '.join(option.choices)})" if option.choices else ""
        flag, how = "--" + option.name.replace("_", "-"), {"default": argparse.SUPPRESS}
        how["help"] = f"{option.meaning}{choices}{note}".replace("%", "%%")
        if option.kind is bool:
            self.add_argument(flag, action=argparse.BooleanOptionalAction, **how)
            return

        def convert(text: str):
            return None if text == "none" and option.optional else option.kind(text)

        convert.__name__ = option.kind.__name__  # which argparse's message names
        self.add_argument(flag, type=convert, metavar="X", **how)


def command_line() -> Parser:
    parser = Parser(prog="dllm.py", description="Answer a prompt with a diffusion language model.", allow_abbrev=False)
    parser.add_argument("--prompt", help="the question, or - to read it from standard input")
    parser.add_argument("--strategy", default=DEFAULT, metavar="NAME", help=f"{' | '.join(STRATEGIES)} | list (default {DEFAULT})")
    parser.add_argument("--model", default=str(EMBEDDED), help="a folder, a Hugging Face id, or oracle:NAME (default the embedded model)")
    parser.add_argument("--adapter", help="a LoRA adapter in PEFT layout to merge: a folder or a Hugging Face id")
    parser.add_argument("--raw", action="store_true", help="take the prompt as it is instead of putting it into the chat template")
    parser.add_argument("--show-prompt", action="store_true", help="print first the prompt as the model sees it")
    parser.add_argument("--json", action="store_true", help="print the counters as one line of JSON, on stderr like their plain form")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default the first there is)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default float32 on a CPU, else bfloat16)")
    parser.add_argument("--watch", type=float, nargs="?", const=0.1, metavar="SECONDS", help="draw each forward, for so long (default 0.1)")
    parser.add_argument("--explain", action="store_true", help="say in words what each forward does, on stderr")
    parser.add_argument("--trace", metavar="FILE", help="record every forward: run.jsonl to work with, run.html to look at")
    for option in options(Settings).values():
        parser.add_option(option, "" if option.default is None else f" (default {option.default})")
    takers: dict[str, list[tuple[str, Option]]] = {}
    for name, builder in STRATEGIES.items():
        for option in options(builder).values():
            takers.setdefault(option.name, []).append((name, option))
    for pairs in takers.values():
        parser.add_option(pairs[0][1], f" [default in {', '.join(f'{name} {shown(option.default)}' for name, option in pairs)}]")
    parser.set_defaults(flags=(*options(Settings), *takers))
    return parser


def shown(default: object) -> str:
    return "none" if default is None else str(default)


def find_model(args: argparse.Namespace) -> tuple:
    """The tokenizer of --model, its config, and a function that loads it; an oracle is all of these itself."""
    if args.model.startswith("oracle:"):
        if unused := [flag for flag in ("adapter", "device", "dtype") if getattr(args, flag)]:
            raise ValueError(f"--{unused[0]} is for checkpoints: an oracle has no weights")
        from lab.oracle import Oracle

        oracle = Oracle(args.model.removeprefix("oracle:"))
        return oracle, oracle.config, lambda: oracle
    load = functools.partial(load_model, args.model, args.adapter, args.device, DTYPES.get(args.dtype))
    return load_tokenizer(args.model), load_config(args.model), load


def read_prompt(text: str | None) -> str:
    if text is None:
        raise ValueError("no prompt: give --prompt TEXT, or --prompt - to read it from standard input")
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if text == "-" else text
        text.encode("utf-8")  # an argument may hold bytes that were none
    except UnicodeError:
        raise ValueError("the prompt is not valid UTF-8") from None
    if not text.strip():
        raise ValueError("the prompt is empty")
    return text


def printable(text: str) -> str:
    """Text that a terminal shows as it is: control characters, which could command it, become U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def use_threads(model: LLaDA) -> None:
    """Run a small model on one thread: on two cores a second one gains 1.3x when they are idle, and costs 15x when one is busy."""
    if model.device.type == "cpu" and model.config.d_model < 512:
        torch.set_num_threads(1)


def peak_memory(device: torch.device) -> float | None:
    """Most bytes held at once: on the GPU, or by this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: list[str] | None = None) -> None:
    """Answer one prompt: the text on stdout, all else on stderr; exit code 2 for anything wrong with the input."""
    parser = command_line()
    args = parser.parse_args(arguments)
    if args.strategy == "list":
        return print(strategy_table())
    settings = {name: value for name, value in vars(args).items() if name in args.flags}
    try:
        _, chosen = plan(args.strategy, settings)
        if observed := args.explain or args.watch is not None or args.trace is not None:
            from lab.observe import check_flags, observe

            check_flags(args)
        text = read_prompt(args.prompt)
        tokenizer, config, load = find_model(args)
        ids = tokenizer.encode(text) if args.raw else tokenizer.encode_chat([{"role": "user", "content": text}])
        check_prompt(ids, config, chosen)
        model = load()
        use_threads(model)  # before `prepare` compiles: compiled code holds for one number of threads
        canvas = prepare(model, ids, args.strategy, settings)
    except ValueError as error:
        parser.error(str(error))
    try:
        result = finish(canvas, observe(steps(canvas), canvas, tokenizer, args) if observed else steps(canvas))
    except (StepLimit, torch.OutOfMemoryError, OSError) as error:
        parser.error(str(error))
    shown_prompt = tokenizer.decode(ids, skip_special_tokens=False) + "\n" if args.show_prompt else ""
    try:
        print(printable(shown_prompt + tokenizer.decode(result.answer())), flush=True)
    except OSError as error:  # a full disk, or a pipe whose reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered must not fail again at exit
        parser.exit(1, f"{parser.prog}: the answer cannot be written: {error.strerror}\n")
    memory = peak_memory(model.device)
    counters = {"strategy": args.strategy} | result.counters()
    counters |= {"peak_memory_mb": memory and round(memory / 1e6), "seed": chosen.seed}
    print(json.dumps(counters) if args.json else "  ".join(f"{name} {value}" for name, value in counters.items()), file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
