"""SDAR (arXiv 2510.06303): a model made to write block by block, as BD3 (arXiv 2503.09573) is."""

from typing import Literal

from strategies import Strategy, named
from strategies.blocks import Add, Parts, blocks_of, in_blocks
from strategies.fast_dllm import Threshold


@named("sdar")
def sdar(
    threshold: Threshold = 0.9,
    sub_blocks: Parts = 1,
    block_add_threshold: Add = None,
    cache: Literal["none", "exact"] = "exact",
) -> Strategy:
    """SDAR (arXiv 2510.06303): block by block, each of which sees itself and those before it, by a
    model made for that; the cache is exact.

    cache: exact reuses finished blocks, none recomputes them; the tokens are the same
    """
    view = blocks_of("block", sub_blocks, cache == "exact")
    return in_blocks(view, threshold, block_add_threshold)
