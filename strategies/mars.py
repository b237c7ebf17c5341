"""MARS-Cache (VidLaDA, arXiv 2601.17868), of text: dllm-cache with intervals of each layer's own.

Left out on purpose: frames whose tokens see only the neighbouring ones, and the anchors that join
them. A prompt of text has no frames.
"""

from typing import Annotated

from strategies import Count, Share, Strategy, has, named, require
from strategies.dllm_cache import refreshed
from strategies.fast_dllm import Threshold, threshold_rule
from strategies.llada import serial


def intervals(steps: int, tiers: int, layers: int) -> list[int]:
    """Every how many forwards each layer is refreshed: in the last tier of layers every `steps`, in
    each one before it half as often. So with a layer all behind it are refreshed, too, and what is
    new reaches the last one in the same forward."""
    return [steps * 2 ** (tiers * (layers - 1 - layer) // layers) for layer in range(layers)]


@named("mars")
def mars(
    prompt_interval_steps: Count = 10,
    gen_interval_steps: Count = 5,
    tiers: Annotated[int, (1, 16)] = 2,
    transfer_ratio: Share = 0.25,
    threshold: Threshold = None,
) -> Strategy:
    """MARS-Cache (VidLaDA, arXiv 2601.17868), of text: dllm-cache, but the first layers are
    refreshed less often than the last.

    prompt_interval_steps: the last layers recompute the prompt every so many forwards, under a
        threshold of a block
    gen_interval_steps: the last layers recompute the whole answer every so many, likewise
    tiers: groups of layers, alike in size, each refreshed half as often as the next, at most one
        for each layer; 1 for all as often as the last, which is dllm-cache
    transfer_ratio: share of the answer that each layer recomputes in between, 0 to 1
    """

    def each(layers: int) -> list[tuple[int, int]]:
        own = prompt_interval_steps, gen_interval_steps
        return [*zip(*(intervals(steps, tiers, layers) for steps in own))]

    def fits(s) -> None:
        layers = s.model.config.n_layers
        require(tiers <= layers, "tiers", tiers, f"at most {layers}, the layers of this model")

    view = has(fits=fits)(refreshed(each, transfer_ratio))
    return Strategy(threshold_rule(threshold), view, serial)
