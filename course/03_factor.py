"""Exercise 3, 25 minutes: Fast-dLLM's factor, which asks how many are written together.

A threshold asks each token alone. But tokens that are written together have not seen each other,
and the more there are, the likelier it is that one of them is wrong. Theorem 1 of Fast-dLLM (Wu et
al., arXiv 2505.22618) says when it cannot matter: if r tokens are each sure to 1 - e, and
(r + 1) e <= 1, then the likeliest tokens, each for itself, are also the likeliest together.

The factor rule makes a rule of that. Order the candidates by sureness; c is the confidence of the
r-th, and r counts from 1. Write the longest run of them, from the surest on, in which each has

    (r + 1) (1 - c) <= factor

An example, worked by hand, of 8 masks and factor 1:

    cell          0     1     2     3     4     5     6     7
    confidence  0.95  0.80  0.60  0.92  0.70  0.30  0.76  0.50
    r             1     3     6     2     5     8     4     7
    (r+1)(1-c)  0.10  0.80  2.80  0.24  1.80  6.30  1.20  4.00
    written       x     x     .     x     .     .     .     .

    scores      token, doubt, confidence, margin and entropy, each [N, L]. Which are the surest is
                said by the doubt, of equal ones the left one is surer
    candidates  bool [N, L]: the cells that are masked. What is none has no r
    window      not needed
    factor      float
    returns     bool [N, L]: what to write. It may write nothing: the loop then writes the surest

Grade it with `python -m course 3`. When it passes, look at it beside the project's own:

    python -m course 3 --page factor.html

The third forward writes 87 twice, with 0.98 and 0.88: of two tokens that is enough, where a
threshold of 0.9 takes one. How sure must 26 tokens be? And where no model errs:

    python -m lab.bench oracle
"""

from torch import Tensor

from kernels import Scores
from strategies import Window


def factor(scores: Scores, candidates: Tensor, window: Window, factor: float = 1.0) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. `from strategies import rank`: rank(doubt, candidates) is int64 [N, L], the place of each cell
#    among the candidates of its line, 0 for the surest. How is r + 1 written with it?
#
# 2. From the surest on r grows and c falls, so that (r + 1) (1 - c) can only grow. What follows for
#    the cells behind the first that fails?
#
# 3. So the run is every candidate that passes: one line.
