"""dInfer's combination (arXiv 2510.08666): hierarchy and smoothing in the vicinity, or credit."""

from typing import Annotated

from strategies import Share, Strategy, Sure, named, require
from strategies.credit import Credit
from strategies.fast_dllm import After, Before, CacheSetting, cached
from strategies.hierarchy import one_a_run
from strategies.llada import serial
from strategies.smoothing import Smoothing, sinking, sure_enough

AsInCredit, AsInSmoothing = Annotated[float, "as in credit"], Annotated[float, "as in smoothing"]


@named("dinfer")
def dinfer(
    high: Sure = 0.9,
    low: Sure | None = 0.62,
    alpha: float = 0.0,
    gamma: AsInCredit = 0.2,
    beta: Annotated[Share, "as in credit"] = 0.8,
    weight: AsInSmoothing = 0.15,
    growth: AsInSmoothing = 0.02,
    max_weight: AsInSmoothing = 0.3,
    fall: float | None = 0.02,
    cache: CacheSetting = "vicinity",
    prefix_look: Before = None,
    after_look: After = None,
) -> Strategy:
    """dInfer (arXiv 2510.08666): its parts together: one token a run of masks, masks that say what
    was expected, and the vicinity of the block recomputed; credit if asked for.

    high: commit every token surer than this, when it has sunk so far
    low: what the surest token of a run of masks needs; none looks at no runs
    alpha: as in credit; 0 gives none
    fall: by how much `high` sinks in each forward, from 1; none starts where it ends
    """
    require(low is None or low <= high, "low", low, f"at most high={high:g}")
    now, forward = sinking(high, fall), Smoothing(weight, growth, max_weight)
    rule = sure_enough(now) if low is None else one_a_run(now, low)
    if alpha:
        forward = Credit(alpha, gamma, beta, inside=forward)
    return Strategy(
        rule, cached(cache, prefix_look=prefix_look, after_look=after_look), serial, forward=forward
    )
