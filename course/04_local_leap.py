"""Exercise 4, 30 minutes: LocalLeap, a lower threshold next to tokens that are sure.

A token is often right long before the model is sure of it, above all beside tokens of which it is.
LocalLeap (Kong et al., arXiv 2510.07081) makes a rule of that. A candidate that is at least
`threshold` sure is written, and is an anchor. A candidate within `radius` cells of an anchor, on
either side, is written if it is at least `relaxed_threshold` sure.

An example, worked by hand: threshold 0.9, relaxed threshold 0.65, radius 2.

    cell          0     1     2     3     4     5     6     7
    confidence  0.95  0.80  0.60  0.92  0.70  0.30  0.76  0.50
    anchor        a     .     .     a     .     .     .     .
    within 2      .     n     n     .     n     n     .     .      6 is 3 away from cell 3
    written       x     x     .     x     x     .     .     .      0.60 and 0.30 are too little

Anchors are candidates of this forward: a token that is written already is none, however sure the
model is of it, and a token that is written because an anchor is near does not become one.

    scores             token, doubt, confidence, margin and entropy, each [N, L]: N lines of L cells
    candidates         bool [N, L]: the cells that are masked
    window             not needed
    threshold          float, for anchors
    relaxed_threshold  float, for their neighbours; at most `threshold`
    radius             int, in cells; 0 is no neighbour, and it may be larger than L. A line has two
                       ends: its first cell is no neighbour of its last, nor of another line
    returns            bool [N, L]: what to write. It may write nothing: the loop writes the surest

Grade it with `python -m course 4`. When it passes, look at it beside the project's own:

    python -m course 4 --page leap.html

The third forward writes 87 twice, with 0.98 and 0.88: the second stands two cells from the first,
an anchor. That is luck: `- 3 =` between them does not make it sure. How often is it bad luck?

    python -m lab.bench compare --task four-step --limit 9 --strategies fast-dllm,localleap

And with localleap:relaxed_threshold=0.4 for a third?
"""

from torch import Tensor

from kernels import Scores
from strategies import Window


def local_leap(
    scores: Scores,
    candidates: Tensor,
    window: Window,
    threshold: float = 0.9,
    relaxed_threshold: float = 0.75,
    radius: int = 4,
) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. Anchors are one line. The question is which cells have one near: for a single anchor at cell a,
#    those whose number i has abs(i - a) <= radius.
#
# 2. So make the table of all pairs of cells of a line, bool [L, L]: which are near each other? A
#    cell is near an anchor if, among the anchors, any is near it: [N, 1, L] & [L, L], any over the
#    last dimension. (A max-pool of width 2 radius + 1 does the same.)
#
# 3. `torch.where(near, relaxed_threshold, threshold)` is what each cell needs.
