"""MARS-Cache (VidLaDA, arXiv 2601.17868), of text: dllm-cache with intervals of each layer's own.

Left out on purpose: frames whose tokens see only the neighbouring ones, and the anchors that join
them. A prompt of text has no frames.
"""

from typing import Annotated

from strategies import MOST, Count, Share, Strategy, named
from strategies.dllm_cache import refreshed
from strategies.fast_dllm import Threshold, threshold_rule
from strategies.llada import serial


def intervals(steps: int, pyramid: float, layers: int) -> list[int]:
    """Every how many forwards each layer is refreshed: the last every `steps`, and evenly less and
    less often down to the first, whose interval is `pyramid` times as long."""
    last = layers - 1
    depths = [(last - layer) / max(last, 1) for layer in range(layers)]  # 1 for the first, 0
    return [round(steps * (1 + (pyramid - 1) * depth)) for depth in depths]


@named("mars")
def mars(
    prompt_interval_steps: Count = 10,
    gen_interval_steps: Count = 5,
    pyramid: Annotated[float, (1, MOST)] = 2.0,
    transfer_ratio: Share = 0.25,
    threshold: Threshold = None,
) -> Strategy:
    """MARS-Cache (VidLaDA, arXiv 2601.17868), of text: dllm-cache, but the first layers are
    refreshed less often than the last.

    prompt_interval_steps: the last layer recomputes the prompt every so many forwards, under a
        threshold of a block
    gen_interval_steps: the last layer recomputes the whole answer every so many forwards, likewise
    pyramid: how many times as long the first layer's intervals are; 1 for all alike, as dllm-cache
    transfer_ratio: share of the answer that each layer recomputes in between, 0 to 1
    """
    last = prompt_interval_steps, gen_interval_steps

    def each(layers: int) -> list[tuple[int, int]]:
        return [*zip(*(intervals(steps, pyramid, layers) for steps in last))]

    return Strategy(threshold_rule(threshold), refreshed(each, transfer_ratio), serial)
