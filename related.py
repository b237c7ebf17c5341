"""The systems around the five papers of dllm.py: each is a rule, a view, a schedule or a hook for the same loop, and a builder that names it.

Every section stands alone: a system can be read, changed or deleted without the others.

Papers: those that the builders name. Letters as in dllm.py.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from dllm import (
    MASKED,
    CacheName,
    Canvas,
    Guide,
    Rule,
    Schedule,
    Soften,
    Strategy,
    View,
    Window,
    cached,
    causal,
    forward,
    full,
    has,
    named,
    pipeline,
    quota,
    rank,
    scored,
    serial,
    threshold_rule,
    traits,
)
from kernels import Scores
from load_weights import load_filter
from model import Cache, LLaDA, Pass
from options import require

FILTER = Path(__file__).parent / "weights" / "tiny-filter.safetensors"  # learn2pd's, for the embedded model

# --- commit rules: hierarchical decoding, Saber, token editing, convolutional decoding, Learn2PD --------------------------------------


def hierarchy(low: float, high: float) -> Rule:
    """The surest token of every run of neighbouring masks, if surer than `low`, and all surer than `high` (dInfer's hierarchical decoding)."""

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        run = (candidates & ~F.pad(candidates, (1, 0))[:, :-1]).cumsum(-1)  # [N, k]: the number of the run a candidate is in, from 1
        place = rank(scores.doubt, candidates)
        best = torch.full_like(F.pad(place, (0, 1)), place.shape[-1]).scatter_reduce(-1, run, place, "amin")
        return (place == best.gather(-1, run)) & (scores.confidence > low) | (scores.confidence > high)

    return rule


@named("hierarchy")
def hierarchy_decoding(high: float = 0.9, low: float = 0.62, cache: CacheName = "vicinity") -> Strategy:
    """Hierarchical decoding (dInfer, arXiv 2510.08666): one token in every run of masks, so that what is written together stands apart.

    high: commit every token surer than this
    low: what the surest token of a run needs, at most `high`
    cache: as in fast-dllm; dInfer's own is vicinity
    """
    require(low <= high, "low", low, f"at most high={high:g}")
    return Strategy(hierarchy(low, high), cached(cache), serial)


@has(revises=True)
class Saber:
    """Commit what is surer than the mean of the tokens so far were, at least n, and take back those that have lost most confidence.

    Following the authors' code: a position's loss is that of its likeliest token, whichever that is now, and counts from the forward before.
    """

    def __init__(self, n: int, mu: int):
        self.n, self.mu = n, mu

    def __call__(self, scores: Scores, candidates: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        sure, live = scores.confidence, window.live
        if window.age == 0:
            self.chosen = sure.new_zeros(int(live.max()) + 1, sure.shape[-1])  # confidence when committed
            self.last = torch.zeros_like(self.chosen)  # in the forward before
        written, place = ~candidates & (self.chosen[live] > 0), rank(scores.doubt, candidates)  # not what a template gave
        total = torch.where(written, self.chosen[live], 0).sum(-1, keepdim=True)
        mean = (total / written.sum(-1, keepdim=True)).nan_to_num(1.0)  # 0 / 0 where nothing is written yet
        commit = candidates & (sure > mean)
        commit = torch.where(commit.sum(-1, keepdim=True) < self.n, candidates & (place < self.n), commit)
        count = commit.sum(-1, keepdim=True)
        back = ((count + self.mu - 1) // self.mu).clamp(min=self.n // 2) if self.mu else torch.zeros_like(count)
        back = back.minimum(count - 1)  # so that there is progress
        drop = (commit | written) & (rank(sure - self.last[live], commit | written) < back)
        self.chosen[live], self.last[live] = torch.where(commit, sure, self.chosen[live]), sure
        return (commit & ~drop) | (written & drop), torch.where(drop, MASKED, scores.token)


@named("saber")
def saber(n: int = 2, mu: int = 8, cache: CacheName = "none") -> Strategy:
    """Saber (arXiv 2510.18165): a threshold that follows the tokens so far, and tokens that are taken back when they lose confidence.

    n: the fewest tokens a forward commits, while there are as many
    mu: commits for each token taken back; 0 takes none back
    cache: as in fast-dllm; the paper uses none
    """
    return Strategy(Saber(n, mu), cached(cache), serial)


def editing(threshold: float, edit_threshold: float) -> Rule:
    """Every token at least as sure as the threshold, and while the block has masks, a new token where another than the written one is (LLaDA 2.1)."""

    @has(revises=True)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        edit = ~candidates & candidates.any(-1, keepdim=True) & (scores.confidence > edit_threshold)
        return candidates & (scores.confidence >= threshold) | edit, scores.token

    return rule


@named("editing")
def token_editing(threshold: float = 0.95, edit_threshold: float = 0.9, cache: CacheName = "prefix") -> Strategy:
    """Token editing (LLaDA 2.1, arXiv 2602.08676): a written token is replaced when the model has come to prefer another, until its block is full.

    threshold: commit every token at least this confident
    edit_threshold: replace a token by one more confident than this
    cache: as in fast-dllm
    """
    return Strategy(editing(threshold, edit_threshold), cached(cache), serial)


def convolution(width: int, kappa: float) -> Rule:
    """The quota of LLaDA, but confidence counts by how many tokens stand within width / 2: times tanh(kappa * their number) (Conv).

    What lies before the block counts as written, what lies behind it as not.
    """

    @has(quota=True)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        written = F.pad(F.pad((~candidates).float(), (width // 2, 0), value=1.0), (0, width - 1 - width // 2))
        near = F.avg_pool1d(written[:, None], width, stride=1)[:, 0] * width  # [N, k]
        doubt = 1 / (scores.confidence * torch.tanh(kappa * near)) - 1
        return quota(scores._replace(doubt=doubt.clamp(max=kernels.LARGEST)), candidates, window)

    return rule


@named("conv")
def convolutional(width: int = 64, kappa: float = 1.0) -> Strategy:
    """Convolutional decoding (arXiv 2509.15188): no blocks; a token counts by how many stand near it already.

    width: of the window in which tokens count, itself included
    kappa: how fast their number comes to suffice
    """
    return Strategy(convolution(width, kappa), full, serial, block_length=None)


def learned(filter: list[Tensor], tau: float) -> Rule:
    """Every token that a small network takes for final with a probability above tau, judging by all confidences of its block (Learn2PD).

    filter: weight and bias of its two layers, each [k, k] and [k]
    A written cell counts as sure. The authors' code shows the network what the model says of it now, which a cache may not have computed.
    """

    @has(length=len(filter[1]))
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        weight, bias, last_weight, last_bias = (part.to(candidates.device) for part in filter)
        seen = torch.where(candidates, scores.confidence, 1.0)
        return F.linear(F.linear(seen, weight, bias).relu(), last_weight, last_bias).sigmoid() > tau  # [N, k]

    return rule


@named("learn2pd")
def learn2pd(tau: float = 0.96, filter: str | None = None, cache: CacheName = "prefix") -> Strategy:
    """Learn2PD (arXiv 2509.25188): a tiny network learns from the confidences of a block which of its tokens are final.

    tau: commit every token that the filter takes for final with a probability above this
    filter: the network's file, made by `python -m lab.train filter` for one model and one block_length; none takes the embedded model's
    cache: as in fast-dllm
    """
    return Strategy(learned(load_filter(filter or FILTER), tau), cached(cache), serial, eos="stop")


# --- before the scores: CreditDecoding, iteration smoothing ---------------------------------------------------------------------------


class Credit:
    """A token that keeps being the likeliest earns credit, which raises its logit: alpha * log(1 + credit) (CreditDecoding).

    Each forward of a block credit fades to its beta-th part, and the likeliest token of every candidate gains confidence ** gamma.
    """

    def __init__(self, alpha: float, gamma: float, beta: float):
        self.alpha, self.gamma, self.beta = alpha, gamma, beta

    def __call__(self, logits: Tensor, candidates: Tensor, window: Window) -> Tensor:
        if window.age == 0:
            self.credit = torch.zeros(int(window.live.max()) + 1, *logits.shape[1:], device=logits.device)  # [B, k, V]
        confidence, token = logits.float().softmax(-1).max(-1, keepdim=True)  # [b, k, 1]
        earned = torch.where(candidates[..., None], confidence**self.gamma, 0)
        credit = (self.beta * self.credit[window.live]).scatter_add(-1, token, earned)
        self.credit[window.live] = credit
        return logits + self.alpha * credit.log1p()


@named("credit")
def credit_decoding(
    threshold: float = 0.9, alpha: float = 0.7, gamma: float = 0.2, beta: float = 0.8, cache: CacheName = "prefix"
) -> Strategy:
    """CreditDecoding (arXiv 2510.06133): a token that stays the first choice gains confidence over the forwards of its block.

    threshold: commit every token at least this confident, credit counted
    alpha: weight of the credit; 0 for none
    gamma: power of the confidence that is earned; below 1 it lifts the unsure
    beta: share of the credit that is kept from forward to forward
    cache: as in fast-dllm
    """
    return Strategy(threshold_rule(threshold), cached(cache), serial, adjust=Credit(alpha, gamma, beta))


def smoothing(weight: float, growth: float, max_weight: float) -> Soften:
    """Add the expected embedding, with a weight that grows with each forward of the answer (dInfer's iteration smoothing)."""
    return lambda probability, window: (weight + growth * window.turns).clamp(max=max_weight)[:, None, None] * probability


def annealed(threshold: float, fall: float) -> Rule:
    """Every token at least as sure as a threshold that starts at 1 and falls with each forward of the answer (dInfer)."""

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        sunk = (1 - fall * window.turns).clamp(min=threshold)  # [b]
        return scores.confidence >= sunk.repeat_interleave(window.must.shape[1])[:, None]

    return rule


@named("smoothing")
def iteration_smoothing(
    threshold: float = 0.9,
    weight: float = 0.15,
    growth: float = 0.02,
    max_weight: float = 0.3,
    fall: float | None = 0.02,
    cache: CacheName = "vicinity",
) -> Strategy:
    """Iteration smoothing (dInfer, arXiv 2510.08666): a mask's embedding says what was expected in its place in the forward before.

    threshold: commit every token at least this confident, when it has sunk so far
    weight: alpha0; of the expected embedding in the first forward
    growth: by how much the weight grows in each forward
    max_weight: what the weight stops at
    fall: by how much the threshold sinks in each forward, from 1; none starts where it ends
    cache: as in fast-dllm; dInfer's own is vicinity
    """
    require(weight <= max_weight, "weight", weight, f"at most max_weight={max_weight:g}")
    rule = threshold_rule(threshold) if fall is None else annealed(threshold, fall)
    return Strategy(rule, cached(cache), serial, soften=smoothing(weight, growth, max_weight))


# --- caches: dKV-Cache, Sparse-dLLM, dLLM-Cache ---------------------------------------------------------------------------------------


def delayed(refresh: int, prefill: bool = False) -> View:
    """Reuse a token's keys and values from the second forward after it was written: until then they are of its mask (dKV-Cache, Decode).

    Everything is recomputed in a block's first two forwards, and in every `refresh`-th; with prefill the prompt only in the very first.
    """

    @has(settled=torch.inf)
    def view(s: Canvas, window: Window) -> Pass:
        S = s.x.shape[1]
        if window.age < 2 or window.age % refresh == 0:
            first = s.prompt_length if prefill and s.cache is not None else 0
            return Pass(slice(first, S), slice(0, S), rows=scored(window, first))
        own = (s.x == s.mask_id) | (s.written == s.written.amax(-1, keepdim=True))  # [B, S]
        own = own[s.live]
        query = own.any(0).nonzero()[:, 0]
        rows = slice(*torch.searchsorted(query, torch.tensor([window.start, window.end], device=query.device)).tolist())  # there are gaps
        return Pass(query, slice(0, S), rows=rows, own=own[:, query])

    return view


@named("dkv")
def dkv_cache(refresh: int = 8, prefill: bool = False, threshold: float | None = None) -> Strategy:
    """dKV-Cache (arXiv 2505.15781): keys and values are reused from the second forward after their token was written, and refreshed at times.

    refresh: recompute everything every so many forwards of a block
    prefill: everything but the prompt, which is computed in the first forward only
    threshold: commit every token at least this confident; none commits the quota of `steps`
    """
    return Strategy(threshold_rule(threshold), delayed(refresh, prefill), serial)


def evicting(keep_ratio: float, kernel_size: int) -> View:
    """Recompute everything in a block's first two forwards, then the block alone, which sees itself and what it asked for most (Sparse-dLLM).

    Each layer keeps the same share of the slots outside the block, those of which the second forward's queries asked most. A slot counts
    as much as the one among its neighbours, kernel_size in all, that was asked most; slots before and behind the block are neighbours.
    """

    @has(settled=2)
    def view(s: Canvas, window: Window) -> Pass:
        S = s.x.shape[1]
        if window.age < 2:  # the first forward does not show yet what matters
            return Pass(slice(0, S), slice(0, S), rows=scored(window, 0), measure=window.age == 1)
        block = torch.arange(window.start, window.end, device=s.x.device)
        outside = torch.cat((torch.arange(window.start, device=s.x.device), torch.arange(window.end, S, device=s.x.device)))  # [K]
        padding = outside < s.start[s.live].repeat(s.passes)[:, None]  # [b, K]
        demand = s.cache.demand[:, :, outside].masked_fill(padding, -torch.inf)  # [layers, b, K]
        demand = F.max_pool1d(demand, kernel_size, 1, kernel_size // 2)[..., : len(outside)].masked_fill(padding, -torch.inf)
        count = ((~padding).sum(-1, keepdim=True).double() * keep_ratio).long()  # [b, 1]
        kept = outside[demand.argsort(dim=-1, descending=True, stable=True)[..., : count.max()]]  # [layers, b, n]
        kept = kept.masked_fill(torch.arange(kept.shape[-1], device=kept.device) >= count, 0)  # shorter rows: padding, which nobody sees
        visible = torch.cat((kept, block.expand(*kept.shape[:2], -1)), -1).sort().values
        return Pass(slice(window.start, window.end), visible, rows=scored(window, window.start))

    return view


@named("sparse")
def sparse_dllm(keep_ratio: float = 0.5, kernel_size: int = 3, threshold: float | None = None) -> Strategy:
    """Sparse-dLLM (arXiv 2508.02558): a block sees only the slots it has asked for most, others in each layer, and they are not refreshed.

    keep_ratio: r; share of the slots outside the block that each layer keeps, 0 to 1
    kernel_size: how many neighbouring slots share what the most asked of them was asked
    threshold: commit every token at least this confident; none commits the quota of `steps`
    """
    return Strategy(threshold_rule(threshold), evicting(keep_ratio, kernel_size), serial)


def partly(prompt_interval_steps: int, gen_interval_steps: int, transfer_ratio: float) -> View:
    """Recompute the prompt now and then, the answer more often, and in between only what changed most of it, in each layer (dLLM-Cache).

    Forwards are counted from the start of each block, like those of every cache: a row must not depend on the others of its batch.
    """

    @has(features=True, settled=torch.inf)
    def view(s: Canvas, window: Window) -> Pass:
        S, G = s.x.shape[1], s.settings.gen_length
        first = 0 if window.age % prompt_interval_steps == 0 else s.prompt_length
        count = G if window.age % gen_interval_steps == 0 else int(G * transfer_ratio)
        return Pass(slice(first, S), slice(0, S), rows=scored(window, first), renew=(s.prompt_length - first, count))

    return view


@named("dllm-cache")
def dllm_cache(
    prompt_interval_steps: int = 25, gen_interval_steps: int = 5, transfer_ratio: float = 0.25, threshold: float | None = None
) -> Strategy:
    """dLLM-Cache (arXiv 2506.06295): each layer recomputes the tokens whose values changed most, and adds to the others what it added before.

    prompt_interval_steps: K_p; recompute the prompt every so many forwards of a block
    gen_interval_steps: K_r; recompute the whole answer every so many forwards of a block
    transfer_ratio: rho; share of the answer that each layer recomputes in between, 0 to 1
    threshold: commit every token at least this confident; none commits the quota of `steps`
    """
    view = partly(prompt_interval_steps, gen_interval_steps, transfer_ratio)
    return Strategy(threshold_rule(threshold), view, serial)


# --- other canvases: d3LLM's pipeline, dLLM-Var's growth ------------------------------------------------------------------------------


def entropy_rule(theta: float) -> Rule:
    """Every token whose distribution has less than theta nats of entropy, and always the one that has the least (d3LLM)."""

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        by_row = lambda t: t.reshape(len(window.must), -1)  # noqa: E731  [b * n, k] -> [b, n * k]
        best = rank(by_row(scores.entropy), by_row(candidates)) == 0
        return (scores.entropy < theta) | best.view_as(candidates)

    return rule


def settling(delay: int, refresh: int) -> View:
    """Reuse the full blocks before the first mask, each once `delay` + 1 forwards have seen it full; until then recompute everything (d3LLM).

    Everything is also recomputed in every `refresh`-th forward of the pipeline.
    """

    @has(paced=True)
    def view(s: Canvas, window: Window) -> Pass:
        P, S = s.prompt_length, s.x.shape[1]
        number = window.age + 1  # of this forward; masks are written in it at the earliest
        written = torch.where(s.x == s.mask_id, number, s.written)[s.live, P:]
        full = written.unflatten(-1, (s.blocks, s.block_length)).amax(-1).cummax(-1).values  # [b, n]: with which forward all up to here was
        seen = window.age - full  # [b, n]: forwards that have seen it full; -1 if it is not
        whole = ((0 <= seen) & (seen < delay)).any(-1) | (window.age % refresh == 0)  # [b]
        first = (P + s.block_length * (seen > delay).sum(-1)).masked_fill(whole, 0)  # [b]
        low = int(first.min())
        if (first == low).all():
            return Pass(slice(low, S), slice(0, S), rows=scored(window, low))
        query = torch.arange(low, S, device=s.x.device)
        return Pass(query, slice(0, S), rows=scored(window, low), own=query >= first[:, None])

    return view


@named("d3llm")
def d3llm(
    theta: float = 0.45, block_add_threshold: float = 0.1, decoded_token_threshold: float = 0.95, delay: int = 1, refresh: int = 10000
) -> Strategy:
    """d3LLM (arXiv 2601.07568): D2F's pipeline over the whole canvas, both ways visible, and entropy instead of confidence.

    theta: commit every token with less entropy than this, in nats
    block_add_threshold: open the next block when the last is filled this far, 0 to 1
    decoded_token_threshold: the first unfinished block must move when its predecessor is filled this far, 0 to 1
    delay: forwards that recompute everything after a block is full, before it is kept
    refresh: recompute everything every so many forwards; 1 keeps nothing
    """
    schedule = pipeline(block_add_threshold, decoded_token_threshold, first_only=True)
    return Strategy(entropy_rule(theta), settling(delay, refresh), schedule, eos="stop", remasking="entropy")


def growing(s: Canvas, window: Window) -> Pass:
    """Nothing stands behind the block yet; what is before it is computed until final, and then no more (dLLM-Var)."""
    return Pass(slice(window.stale, window.end), slice(0, window.end), rows=scored(window, window.stale))


@named("dllm-var")
def dllm_var(threshold: float = 0.9) -> Strategy:
    """dLLM-Var (arXiv 2510.24605): the canvas grows block by block until one holds an EOS; nothing is computed behind it.

    threshold: commit every token at least this confident
    """
    return Strategy(threshold_rule(threshold), growing, serial, eos="stop")


# --- speculation, without a loss: FreeDave, Spiffy, SWIFT -----------------------------------------------------------------------------

# A draft fills the i-th surest mask with its j-th likeliest token, for each of its pairs (i, j), both from 0; a graph is several drafts.
Graph = tuple[tuple[tuple[int, int], ...], ...]


def chain(depth: int) -> Graph:
    """The drafts of FreeDave: the surest mask filled, the two surest, ... up to depth - 1; with the canvas itself, depth of them."""
    return tuple(tuple((i, 0) for i in range(n)) for n in range(1, depth))


class Drafts:
    """Computes drafts along with each canvas; where the rule then makes one of them, its logits are there already, and no forward is run.

    Every rule sees the logits it would have seen, in the same order. So the tokens are those of the strategy without drafts, for any graph,
    rule (also one that remembers) and temperature, given a cache whose slots inside the block are computed anew in every forward.

    skip: layers without which the network makes the drafts, in a forward of their own; None makes them from the last logits there are
    """

    def __init__(self, graph: Graph, skip: Collection[int] | slice | None = None):
        self.graph, self.skip = graph, skip if graph else None

    def __call__(self, s: Canvas, window: Window, at: Pass) -> tuple[Tensor, int, Tensor]:
        live, span = s.live, slice(window.start, window.end)
        now = s.x[live, span]  # [b, k]
        if window.age < traits(s.strategy.view).settled:  # little is known of this block, and the cache may be refreshed
            self.last, rows, ran = forward(s, window, at)
            self.drafts = torch.full((len(s.x), 1 + len(self.graph), now.shape[1]), -1, device=now.device)  # [B, D, k]
            self.logits = self.last.new_empty(*self.drafts.shape, self.last.shape[-1])  # [B, D, k, V]
            self.rows = live
            return self.last, rows, ran
        known = (self.drafts[live] == now[:, None]).all(-1)  # [b, D]
        miss, rows = ~known.any(-1), 0
        if miss.any():
            if self.skip is None:
                last = self.last[torch.isin(self.rows, live)][miss]  # [m, k, V]: what the rows' latest tokens were chosen by
            else:
                skip = range(s.model.config.n_layers)[self.skip] if isinstance(self.skip, slice) else self.skip
                last, rows, _ = forward(s, window, at._replace(skip=skip), (s.x[live[miss]], miss.nonzero()[:, 0]))
                s.forbid(last)
            drafts = torch.cat((now[miss, None], self.draft(last, now[miss], s.mask_id)), 1)  # [m, D, k]
            lines = miss.nonzero()[:, 0].repeat_interleave(drafts.shape[1])
            canvases = s.x[live[lines]]
            canvases[:, span] = drafts.flatten(0, 1)
            logits, more, _ = forward(s, window, at, (canvases, lines))
            rows += more
            self.drafts[live[miss]], self.logits[live[miss]] = drafts, logits.unflatten(0, drafts.shape[:2])
            known[miss] = torch.arange(known.shape[1], device=known.device) == 0
        self.rows, self.last = live, self.logits[live, known.int().argmax(-1)]
        return self.last, rows, miss * (1 if self.skip is None else 2)

    def draft(self, logits: Tensor, now: Tensor, mask_id: int) -> Tensor:
        """The graph's drafts of blocks now [m, k], from logits [m, k, V] in which something was masked still: int64 [m, D - 1, k]."""
        furthest = min(logits.shape[-1] - 1, max((j for node in self.graph for _, j in node), default=0))
        probability, token = logits.float().softmax(-1).topk(1 + furthest)
        place = rank(1 - probability[..., 0], now == mask_id)
        drafts = now[:, None].repeat(1, len(self.graph), 1)
        for number, node in enumerate(self.graph):
            for i, j in node:
                drafts[:, number] = torch.where((place == i) & (now == mask_id), token[..., min(j, furthest)], drafts[:, number])
        return drafts


@named("freedave")
def freedave(depth: int = 4, threshold: float | None = None, cache: CacheName = "dual") -> Strategy:
    """FreeDave (arXiv 2510.00294): each forward also computes where the next ones may lead; the same tokens in fewer forwards.

    depth: canvases a forward computes; 1 is no speculation
    threshold: commit every token at least this confident; none commits the quota of `steps`
    cache: as in fast-dllm
    """
    return Strategy(threshold_rule(threshold), cached(cache), serial, ahead=Drafts(chain(depth)))


CALIBRATED: Graph = (
    ((0, 0),), ((0, 0), (1, 0)), ((0, 0), (1, 0), (2, 0)), ((0, 0), (1, 0), (2, 0), (3, 0)),
    ((1, 0),), ((0, 0), (2, 0)), ((0, 0), (1, 0), (3, 0)),
)  # fmt: skip


@named("spiffy")
def spiffy(graph: str | None = None, threshold: float | None = None, cache: CacheName = "dual") -> Strategy:
    """Spiffy (arXiv 2509.18085): as freedave, but the drafts are those that came true most often when they were counted.

    graph: a file that lab/calibrate.py wrote; none takes what it found for the embedded model at one token per forward
    threshold: commit every token at least this confident; none commits the quota of `steps`
    cache: as in fast-dllm
    """
    drafts = CALIBRATED if graph is None else read_graph(graph)
    return Strategy(threshold_rule(threshold), cached(cache), serial, ahead=Drafts(drafts))


def read_graph(file: str) -> Graph:
    """The drafts in a JSON file: a list of lists of pairs [i, j], the i-th surest mask and its j-th likeliest token, both from 0."""
    try:
        graph = tuple(tuple((i, j) for i, j in node) for node in json.loads(Path(file).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"graph {file!r} cannot be read: {error}") from None
    if not all(type(n) is int and 0 <= n < 1000 for node in graph for pair in node for n in pair):
        raise ValueError(f"graph {file!r} holds something else than pairs of whole numbers from 0")
    return graph


@named("swift")
def swift(depth: int = 4, skip: str | None = None, threshold: float | None = None, cache: CacheName = "dual") -> Strategy:
    """SWIFT (arXiv 2410.06916), for diffusion: as freedave, but the drafts are those of the same network with layers left out.

    depth: canvases a forward computes; 1 is no speculation
    skip: layers left out, such as 1,3; none takes every second one between the first and the last
    threshold: commit every token at least this confident; none commits the quota of `steps`
    cache: as in fast-dllm
    """
    if skip is not None:
        require(re.fullmatch(r"\d+(,\d+)*", skip) is not None, "skip", skip, "numbers of layers from 0, such as 1,3")
    layers = slice(1, -1, 2) if skip is None else tuple(map(int, skip.split(",")))
    return Strategy(threshold_rule(threshold), cached(cache), serial, ahead=Drafts(chain(depth), layers))


# --- guided by a model that reads from left to right: APD, FlashDLM -------------------------------------------------------------------


def frontier(lookahead: int) -> Schedule:
    """From left to right, every row at a place of its own: its first mask, a block of one token, is open, `lookahead` masks may be written (APD)."""

    @has(frontier=True, length=1)
    def schedule(s: Canvas) -> Iterator[Window]:
        age = stale = 0
        while len(s.live):
            masked = s.masked()[..., 0]  # [b, n]
            first = masked & (masked.cumsum(-1) == 1)
            at = first.int().argmax(-1)  # [b]
            s.opened[s.live] = at + 1
            low, high = int(at.min()), min(int(at.max()) + lookahead, s.blocks)
            yield (window := s.window(low, high, age, stale, first[:, low:high], lookahead=lookahead - 1))
            age, stale = age + 1, window.start

    return schedule


def trailing(recompute: int | None) -> View:
    """Recompute what was written last, so many slots before it and the masks that may be written; what lies behind is not there yet (APD).

    With 0, a token is computed once after it was written, and never again (FlashDLM's FreeCache, token by token); None recomputes everything.
    """

    @has(frontier=True)
    def view(s: Canvas, window: Window) -> Pass:
        written, first = s.written[s.live], window.start + window.must.int().argmax(-1)  # [b, S], [b]
        left = (written == written.amax(-1, keepdim=True)).int().argmax(-1)  # [b]: 0 at first, when nothing is written
        left = torch.zeros_like(left) if recompute is None else (left - recompute).clamp(min=0)
        right = first[:, None] + 1 + window.lookahead  # [b, 1]
        low = int(left.min())
        query = torch.arange(low, window.end, device=s.x.device)
        own = (query >= left[:, None]) & (query < right)  # [b, Q]
        mask = (torch.arange(window.end, device=s.x.device) < right)[:, None, None].expand(-1, 1, len(query), -1)  # [b, 1, Q, K]
        return Pass(query, slice(0, window.end), mask, scored(window, low), own)

    return view


class Reader:
    """A model of the next token that reads what the rule would write, and lets the longest accepted run from a row's first mask on be written.

    A token is accepted if it is among the `top` first choices of share * z + (1 - share) * z of the guide, both with the noise it was drawn by.
    correct: the first that is not becomes the guide's own choice (FlashDLM); otherwise a row's first token is always accepted (APD).
    """

    def __init__(self, model: LLaDA | None, share: float, top: int, correct: bool):
        self.model, self.share, self.top, self.correct = model, share, top, correct
        self.cache: Cache | None = None

    def __call__(self, s: Canvas, window: Window, logits: Tensor, noise: Tensor | None, commit: Tensor, token: Tensor):
        """Logits and noise [b, n, V], commit and token [b, n]; returns the two latter as they are to be, and the token-forwards spent."""
        told, rows = self.read(s, window, torch.where(commit, token, s.x[s.live, window.start : window.end]))
        target = self.share * logits + (1 - self.share) * told
        s.forbid(target)
        target = target if noise is None else target + noise
        accepted = commit & ((target > target.gather(-1, token[..., None])).sum(-1) < self.top)  # [b, n]
        if not self.correct:
            accepted |= window.must
        rejected = s.candidates(window) & ~accepted
        nth = rejected.cumsum(-1)
        commit = accepted & (nth == 0) | rejected & (nth == 1) & self.correct
        token = torch.where(rejected, target.argmax(-1), token)
        if s.eos == "stop":  # nothing is written behind an EOS
            commit &= F.pad(commit & (token == s.eos_id), (1, 0))[:, :-1].cumsum(-1) == 0
        return commit, token, rows

    def read(self, s: Canvas, window: Window, drafted: Tensor) -> tuple[Tensor, int]:
        """Logits [b, n, V] of what comes at each cell of the window, given all before it with `drafted`, int64 [b, n], in place; rows computed."""
        if self.cache is None:
            self.cache = self.model.new_cache(len(s.live), s.x.shape[1])
        else:  # all before the window is final, and computed, but for a token that was corrected
            self.cache.keep(torch.isin(self.live, s.live).nonzero()[:, 0])
            window = replace(window, stale=window.start - 1)
        self.live, at = s.live, causal(s, window)
        ids = torch.cat((s.x[s.live, : window.start], drafted), 1)[:, at.query]  # [b, Q]
        start = s.start[s.live] if s.padded else None
        s.nfe += 1
        return self.model(ids, at, self.cache, start), ids.numel()


def left_to_right(guide: Guide, recompute: int | None, lookahead: int) -> Strategy:
    """Draft every mask that may be written, and write what the guide makes of it."""
    view, schedule = trailing(recompute), frontier(lookahead)
    return Strategy(threshold_rule(0.0), view, schedule, eos="stop", guide=guide, block_length=1)


@named("apd")
def apd(guide: LLaDA | None = None, share: float = 0.7, recompute: int | None = 16, lookahead: int = 100) -> Strategy:
    """APD (arXiv 2506.00413): from left to right, as many tokens as a model of the next token confirms in one forward.

    guide: the second model, with the same vocabulary: loaded in Python, a folder or a Hugging Face id on the command line
    share: R; of the model's own logits in the mixture that confirms its tokens, the rest being the guide's; 1 confirms all
    recompute: W; positions before those written last that are computed anew; none takes all
    lookahead: M; masks that a forward sees and may write
    """
    return left_to_right(Reader(guide, share, 1, correct=False), recompute, lookahead)


@named("guided")
def guided(guide: LLaDA | None = None, top: int = 5, recompute: int | None = 0, lookahead: int = 32) -> Strategy:
    """Guided diffusion (FlashDLM, arXiv 2505.21467): from left to right, up to the first token of which a model of the next token would not think.

    guide: as in apd
    top: of how many of the guide's first choices a token must be one; with 1 the guide itself could have written all
    recompute: as in apd
    lookahead: as in apd
    """
    return left_to_right(Reader(guide, 0.0, top, correct=True), recompute, lookahead)


# --- several trajectories: Prism ------------------------------------------------------------------------------------------------------


@named("prism")
def prism(
    n: int = 16,
    k: int = 4,
    survivors: int | None = None,
    decay: float = 1.8,
    interval: int = 3,
    search_from: float = 0.1,
    search_to: float = 0.6,
    remask: int = 2,
    threshold: float | None = 0.9,
    cache: CacheName = "prefix",
) -> Strategy:
    """Prism (arXiv 2602.01842): several trajectories, of which the surest go on, copied with some of their tokens masked again.

    n: trajectories at the start
    k: trajectories that are left when the search is over, at most n; the best of them is the answer
    survivors: trajectories that go on from each pruning, at most n; none for half of k
    decay: their number, copies included, falls by this factor with every forward, until k are left
    interval: forwards from one pruning to the next
    search_from: the first pruning, as a share of block_length in forwards of the first block
    search_to: the end of the search, likewise
    remask: tokens of each copy that are masked again, drawn from three times as many of the least sure
    threshold: commit every token at least this confident; none commits the quota of `steps`
    cache: as in fast-dllm
    """
    from lab.prism import HierarchicalSearch  # a search around the loop, which is no part of it

    survivors = survivors or max(1, k // 2)
    for name, value in (("k", k), ("survivors", survivors)):
        require(value <= n, name, value, f"at most n={n}")
    require(search_from <= search_to, "search_from", search_from, f"at most search_to={search_to:g}")
    search = HierarchicalSearch(n, k, survivors, decay, interval, search_from, search_to, remask)
    rule = threshold_rule(threshold)
    return Strategy(rule, cached(cache), serial, eos="stop", search=search, temperature=0.7)
