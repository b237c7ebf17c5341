"""Exercise 2, 20 minutes: Fast-dLLM's threshold, and the surest token where none is sure enough.

A quota writes two tokens whether the model is sure of none or of ten. Fast-dLLM (Wu et al., arXiv
2505.22618, algorithm 1) asks the model: every token with a confidence of at least `threshold` is
written. Where no token of a block is that sure the surest one is written all the same: the next
forward would see the same canvas, propose the same, and the decode would never end.

An example, worked by hand, of 8 masks:

    cell            0     1     2     3     4     5     6     7
    confidence    0.95  0.80  0.60  0.92  0.70  0.30  0.76  0.50
    threshold 0.9   x     .     .     x     .     .     .     .
    threshold 0.99  x     .     .     .     .     .     .     .    none is sure enough: the surest

    scores      token, doubt, confidence, margin and entropy, each [N, L]: N lines of L cells, one
                for each block of each row of the batch. Which is the surest is said by the doubt,
                of equal ones the left one: exercise 1 says why
    candidates  bool [N, L]: the cells that are masked. Some lines may have none
    window      window.must, bool [b, n], N = b * n: the blocks in which this forward must write at
                least one token. As a column of lines it is window.must.reshape(-1, 1)
    threshold   float
    returns     bool [N, L]: what to write. What is no candidate may be True: it does not count

Here yours decides alone: the loop, which otherwise sees to the surest token, does not. Grade it
with `python -m course 2`. When it passes, look at it beside the project's own:

    python -m course 2 --page threshold.html

Six forwards, with a threshold of 0.99. The first writes all but the results of three sums, and then
three forwards write a single token, of which the model was less than 0.99 sure. Which cells are
these, and why does the fifth write three at once? With 0.9, in words:

    python dllm.py --prompt "What is 25 + 17?" --strategy course/02_threshold.py:threshold --explain
"""

from torch import Tensor

from kernels import Scores
from strategies import Window


def threshold(scores: Scores, candidates: Tensor, window: Window, threshold: float = 0.9) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. Which lines have nothing that is sure enough? Ask `any` over the cells, the last dimension, and
#    keep it: [N, 1] compares with [N, L]. Only what is a candidate can be sure enough.
#
# 2. `from strategies import rank`: rank(doubt, candidates) is the place of each cell among the
#    candidates of its line, 0 for the surest. You wrote it in exercise 1.
#
# 3. What is written is what is sure, or, in lines that must move and have nothing sure, the cell of
#    place 0.
