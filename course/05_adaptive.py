"""Exercise 5, 20 minutes: Streaming-dLLM's threshold, which sinks as a block fills.

The last masks of a block know all their neighbours, and still a threshold of 0.9 asks as much of
them as of the first. Streaming-dLLM (Xiao et al., arXiv 2601.17917) lowers it as the block fills.
With r the share of masks in what the model looks at, a token needs a confidence of at least

    threshold * (1 - alpha * (1 - r))

What it looks at is the block and, behind it, `kept` slots that are all masks: of 8 cells with 3
masks left and 4 slots kept, r is (3 + 4) / (8 + 4). In the first forward of a block the plain
threshold holds, whatever r is: so the authors' code has it.

An example, worked by hand, of a block of 8 with 0 and 3 written already, threshold 0.9, alpha 0.5
and nothing kept: r = 6/8, and 0.9 (1 - 0.5 * 2/8) = 0.7875.

    cell          0     1     2     3     4     5     6     7
    confidence  0.95  0.80  0.60  0.92  0.70  0.30  0.76  0.50
    masked        -     #     #     -     #     #     #     #
    written       .     x     .     .     .     .     .     .

    scores      token, doubt, confidence, margin and entropy, each [N, L]: N lines of L cells
    candidates  bool [N, L]: the cells that are masked. Each line fills at its own pace
    window      window.age, int: forwards since the block was entered, 0 in its first
    kept        int: masks behind the block that the model looks at
    threshold   float
    alpha       float, 0 to 1: how far the threshold sinks; with 0 it does not
    returns     bool [N, L]: what to write. It may write nothing: the loop then writes the surest

Grade it with `python -m course 5`. When it passes, look at it beside the project's own:

    python -m course 5 --page adaptive.html

The threshold is 0.99. The second forward writes 125 twice, with 0.98 and 0.97: 14 of 16 cells of
the block were full. From the same state, what would a threshold of 0.99 write? The page says it.
"""

from torch import Tensor

from kernels import Scores
from strategies import Window


def adaptive(
    scores: Scores,
    candidates: Tensor,
    window: Window,
    kept: int = 0,
    threshold: float = 0.9,
    alpha: float = 0.3,
) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. r is a number for each line: sum the candidates over the last dimension and keep it, [N, 1].
#
# 2. How many cells there are in all is candidates.shape[-1] + kept.
#
# 3. The first forward is the same formula with an alpha of 0.
