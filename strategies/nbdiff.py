"""NBDiff (arXiv 2512.06776): a model of the next token that learned to write blocks."""

from typing import Literal

from strategies import Strategy, named
from strategies.blocks import Add, Parts, blocks_of, in_blocks
from strategies.fast_dllm import Threshold


@named("nbdiff", model="tiny-ar", adapter="tiny-nbdiff")
def nbdiff(
    threshold: Threshold = 0.9,
    sub_blocks: Parts = 1,
    block_add_threshold: Add = None,
    cache: Literal["none", "exact"] = "exact",
) -> Strategy:
    """NBDiff (arXiv 2512.06776): block by block, both ways only in the open one; all before it is
    read as a model of the next token reads it.

    cache: exact reuses finished blocks, none recomputes them; the tokens are the same
    """
    view = blocks_of("causal", sub_blocks, cache == "exact")
    return in_blocks(view, threshold, block_add_threshold, block_length=8, shift=1)
