"""Exercise 13, 60 minutes: EB-Sampler, from the paper alone.

Here is no table to fill and no hint about code: what stands below is what a paper gives you. It is
the way every strategy of this project began.

EB-Sampler (Ben-Hamu et al., arXiv 2505.24857) bounds what is lost when tokens are written
together. Let U be a set of masked cells. A model gives the distribution of each of them, not their
joint one. Writing all of U at once, as if they were independent, errs by the Kullback-Leibler
divergence of the joint distribution from the product of its marginals, that is, by their mutual
information

    D(U) = sum over U of H(x_i)  -  H(x_U)

where H(x_i) is the entropy of a cell (`scores.entropy`, in nats). The joint entropy H(x_U) is not
known, but it is at least that of each single cell, so that

    D(U)  <=  sum over U of H(x_i)  -  max over U of H(x_i)

The sampler sorts the masked cells by their entropy, the least first, and writes the largest set of
the first k whose bound does not exceed gamma. So gamma = 0 writes one token a forward, unless
others are certain, and the bound for one cell is 0 whatever its entropy: one token is always
written.

    scores      as in exercise 1; scores.entropy float [N, L], in nats
    candidates  bool [N, L]: the masked cells
    window      not needed
    gamma       float, 0 or more, in nats
    returns     bool [N, L]

The example of docs/idea.md gives confidences, not entropies. Make one of eight entropies yourself,
work it out by hand for gamma = 1, and see whether your function agrees, before you grade it with
`python -m course 13`. The goldens are 20 decodes by other people's implementations of the paper.
When it passes, compare with a threshold that takes as many forwards:

    python -m course 13 --page eb.html

The paper reports 2 to 3 times fewer forwards on code and mathematics. Two public implementations
are wrong: one takes the maximum over the rows of the batch. Which property of yours would find it?
"""

from torch import Tensor

from kernels import Scores
from strategies import Window


def bounded(scores: Scores, candidates: Tensor, window: Window, gamma: float) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. With the cells sorted, the maximum over the first k is the k-th itself, so that the bound of
#    the first k is the sum of the first k - 1. It never falls when k grows.
#
# 2. `sort(dim=-1, stable=True)` gives values and places. What is no candidate has to come last, and
#    must not add to any sum: inf minus inf is no number.
#
# 3. `scatter` puts what was decided in sorted order back into the order of the cells.
