"""Fast-dLLM (arXiv 2505.22618): thresholds on confidence, and approximate caches by the block."""

from typing import Annotated, Literal

from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Rule, Strategy, Sure, View, Window, has, named, rank, require
from strategies.llada import ORDERS, Timesteps, full, quota, serial

CacheName = Literal["none", "prefix", "dual", "vicinity", "frozen"]
CacheSetting = Annotated[CacheName, "as in fast-dllm"]
SURE_ENOUGH = "commit every token at least this confident; none commits the quota of `steps`"
Threshold = Annotated[Sure | None, SURE_ENOUGH]
VICINITY = 16  # slots on either side of the block, as in dInfer's scripts; its classes say 0
SIDE = f"slots {{}} the block that the cache `vicinity` recomputes, by default {VICINITY}"
Before = Annotated[int | None, SIDE.format("before")]
After = Annotated[int | None, SIDE.format("behind")]


def cached(cache: CacheName, *, prefix_look: Before = None, after_look: After = None) -> View:
    """Recompute all at the start of a block, then less: prefix the block and all behind it, dual
    only the block, vicinity the block and some slots on either side (dInfer). frozen is a prefix
    that is never refreshed: it recomputes the block, and what was not final when it was last
    computed (FlashDLM's FreeCache)."""
    sides = {"prefix_look": prefix_look, "after_look": after_look}
    for name, slots in sides.items():
        require(slots is None or cache == "vicinity", name, slots, "none unless cache is vicinity")
    if cache == "none":
        return full
    near = [VICINITY if slots is None else slots for slots in sides.values()]
    before, behind = {"vicinity": near, "dual": (0, 0)}.get(cache, (0, None))

    @has(shifts=True, leads=before == 0)
    def view(s, window: Window) -> Pass:
        S = s.x.shape[1]
        first, end = max(0, window.start - before), S
        if cache == "frozen":
            first = window.final
        elif window.age == 0:
            first = 0
        elif behind is not None:
            end = min(S, window.end + behind)
        return Pass(slice(first, end), slice(0, S))

    return view


def threshold_rule(threshold: float | None, strict: bool = False) -> Rule:
    """Every token at least this sure, surer than this if strict; with None, LLaDA's quota."""
    if threshold is None:
        return quota

    @has(masks_only=True)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        sure = scores.confidence
        return sure > threshold if strict else sure >= threshold

    return rule


def factor_rule(factor: float) -> Rule:
    """The longest run of the surest tokens whose r-th has (r + 1) (1 - confidence) <= factor.

    As in theorem 1 of the paper; the authors' code also takes a last token that fails.
    """

    @has(masks_only=True)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        place = rank(scores.doubt, candidates)  # r - 1
        fails = candidates & (scores.confidence < 1 - factor / (place + 2))
        return place < place.masked_fill(~fails, place.shape[-1]).amin(-1, keepdim=True)

    return rule


@named("fast-dllm", either=("threshold", "factor"))
def fast_dllm(
    cache: CacheName = "prefix",
    threshold: Threshold = 0.9,
    factor: float | None = None,
    prefix_look: Before = None,
    after_look: After = None,
) -> Strategy:
    """Fast-dLLM (arXiv 2505.22618): every token that is sure enough, and keys and values reused
    inside a block.

    cache: what is reused after the refresh at a block's start: none, the prefix, all but the block
        (dual) or its vicinity; frozen never refreshes
    factor: replaces the threshold: commit the r surest while (r + 1) * (1 - confidence) <= factor
    """
    rule = threshold_rule(threshold) if factor is None else factor_rule(factor)
    view = cached(cache, prefix_look=prefix_look, after_look=after_look)
    # what the authors' code does with Dream, whatever order it is asked for
    dreams = Strategy(Timesteps(), view, serial, order=ORDERS["entropy"]) if rule is quota else None
    return Strategy(rule, view, serial, shifted=dreams)
