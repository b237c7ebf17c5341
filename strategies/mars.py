"""MARS-Cache (VidLaDA, arXiv 2601.17868), of text: dllm-cache with intervals of each layer's own.

Left out on purpose: all that is about video, frames whose tokens see only their neighbours', and
the anchors that join them. A prompt of text has no frames.
"""

from typing import Annotated

from strategies import MOST, Count, Share, Strategy, named
from strategies.dllm_cache import refreshed
from strategies.fast_dllm import Threshold, threshold_rule
from strategies.llada import serial


def slower(pyramid: float, layers: int) -> list[float]:
    """By how much longer the intervals of each layer are than the last one's: evenly from
    `pyramid` down to 1, so that no layer is refreshed more often than one above it."""
    last = layers - 1
    return [1 + (pyramid - 1) * (last - layer) / max(last, 1) for layer in range(layers)]


@named("mars")
def mars(
    prompt_interval_steps: Count = 10,
    gen_interval_steps: Count = 5,
    pyramid: Annotated[float, (1, MOST)] = 2.0,
    transfer_ratio: Share = 0.25,
    threshold: Threshold = None,
) -> Strategy:
    """MARS-Cache (VidLaDA, arXiv 2601.17868), of text: dllm-cache, but the layers nearest to the
    tokens are refreshed less often than those nearest to the logits.

    prompt_interval_steps: the last layer recomputes the prompt every so many forwards, under a
        threshold of a block
    gen_interval_steps: it recomputes the whole answer every so many forwards, likewise
    pyramid: how many times as long the first layer's intervals are; 1 for all alike, as dllm-cache
    transfer_ratio: share of the answer that each layer recomputes in between, 0 to 1
    """
    own = prompt_interval_steps, gen_interval_steps

    def intervals(layers: int) -> list[tuple[int, int]]:
        """Of each layer, in whole forwards."""
        return [tuple(round(steps * times) for steps in own) for times in slower(pyramid, layers)]

    return Strategy(threshold_rule(threshold), refreshed(intervals, transfer_ratio), serial)
