"""Exercise 1, 25 minutes: LLaDA's quota, so many tokens a forward.

LLaDA (Nie et al., arXiv 2502.09992) decodes in a fixed number of forwards. Each of them proposes a
token for every mask, and a share of the proposals is written: the surest. With m masks in a block
and S forwards left for it, this one included, the next forward writes m / S of them, rounded up.
So a block of 8 in 3 forwards is filled by 3, 3 and 2 tokens.

An example, worked by hand, of 8 masks in 4 forwards (docs/idea.md has it for other rules, too):

    cell          0     1     2     3     4     5     6     7
    confidence  0.95  0.80  0.60  0.92  0.70  0.30  0.76  0.50
    written       x     .     .     x     .     .     .     .      8 / 4 = 2: the two surest

Which are the surest is said by `scores.doubt`, the odds against a token: confidence is
1 / (1 + doubt). In float32 a confidence runs into 1.0, and then nobody can say which of two sure
tokens is surer; doubts of 1e-9 and 1e-12 are still apart. Of equal ones the left one is surer.

    scores      token, doubt, confidence, margin and entropy, each [N, L]: N lines of L cells, one
                for each row of the batch. A doubt is a float32, 0 for certain
    candidates  bool [N, L]: the cells that are masked. Each line has its own number of them, and
                some lines may have none
    window      window.remaining is S, the forwards left for this block, this one included
    returns     bool [N, L]: what to write. What is no candidate may be True: it does not count

Grade it with `python -m course 1`. When it passes, look at it beside the project's own:

    python -m course 1 --page quota.html

Both write two tokens in each forward, and the button that jumps to the first difference finds none.
Then change `.doubt` to `-confidence` in yours: where do they part?
"""

from torch import Tensor

from kernels import Scores
from strategies import Window


def quota(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. How many to write is a number for each line: keep it as a column, [N, 1], and it compares with
#    [N, L]. Rounding up is (m + S - 1) // S in whole numbers.
#
# 2. A cell is written if its place among the candidates of its line, 0 for the surest, is below
#    that number. So you need the place of each cell.
#
# 3. `argsort` says which cell is at each place. The place of each cell is the argsort of that.
#    With argsort(dim=-1, stable=True) equal doubts keep their order. What is no candidate can have
#    the doubt inf.
