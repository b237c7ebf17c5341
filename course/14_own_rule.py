"""Exercise 14, 90 minutes: a rule of your own, on the leaderboard.

Every rule so far was somebody's. Write one that the papers do not have. What it is asked and what
it returns is what it was in exercises 1 to 5, and it sees the network's scores, not its mind. Some
questions that LocalLeap (arXiv 2510.07081) leaves open, to start from:

    * It relaxes the threshold next to anchors that are written in the same forward: the network has
      not seen them yet. What of cells next to tokens that were written before?
    * Should the radius grow with the confidence of the anchor?
    * Why do dependencies over a distance break it (`python -m lab.bench oracle`, the line `echo`)?
    * `window.age` counts the forwards of the block. What is sure later that was not at first?

    scores      token, doubt, confidence, margin and entropy, each [N, L]
    candidates  bool [N, L]: the masked cells
    window      window.age, 0 in the block's first forward, and others (strategies/__init__.py)
    returns     bool [N, L]; it may accept nothing: the surest candidate is written then

Watch it, and see how it stands among the project's strategies, on a hundred held-out stories:

    python dllm.py --prompt "What is 25 + 17?" --strategy course/14_own_rule.py:rule --explain
    python -m course rank course/14_own_rule.py:rule

The board says which lines are on the Pareto front: no other is as good in right answers, forwards
and rows, and better in one. With a hundred stories the interval of 97 right answers is 92 % to
99 %: what differs by two stories may be luck. So `python -m course 14` asks for these things on
another hundred stories, on which nobody has tuned a rule yet; do not tune yours on them:

    1. it is a rule: each line has the same answer alone as among others, and twice the same
    2. it is not a plain threshold on the confidence
    3. it is right in at least 90 of the hundred
    4. no plain threshold (0.99, 0.95, 0.9, 0.8, 0.7, 0.6 or 0.5) has as many right answers in as
       few forwards
"""

from torch import Tensor

from kernels import Scores
from strategies import Window


def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. Begin with a threshold that is 0.9 for some cells and less for others: that cannot lose against
#    0.9 where the others are chosen well. `torch.where(which, 0.6, 0.9)` is such a threshold.
#
# 2. What is no candidate is written already, or lies in no block that is open. Which cells have
#    such a neighbour? `torch.nn.functional.pad` and a slice shift a line by one.
#
# 3. When it fails by a few stories, look at one: record both decodes with --trace and step to the
#    first difference (docs/watching.md).
