"""Bug 5, 20 minutes: --factor breaks names at the end of a block.

An issue, as it came in:

    I use `factor=0.5` since it is said to write only what may be written together. It is careful
    all along, one or two tokens a forward, but in the last forward of a block it writes what it
    wants: two tokens at once of which the model is 30 % sure. I count the bound, (r + 1)(1 - c_r),
    for the tokens of each forward, and it is below 0.5 everywhere but there. Blocks with an odd
    number of tokens have it as often as others.

Write a property that holds for the decoder as it is, and does not hold for one with this bug.
Graded are the decoder, this bug, and the five others: at most two of those may break it, too. A
property that every bug breaks says that something is wrong, but not what.

    model    a small random network of 64 tokens; 62 is EOS, 63 the mask
    returns  bool: True if the property holds

Call `generate` and `decode` inside the function, with whatever a user can set; what a Step and a
Result hold is said in dllm.py. Grade it with `python -m course b5`.
"""

from dllm import decode, generate


def holds(model) -> bool:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. `decode(model, prompt, factor=0.5, ...)` yields a Step for each forward: step.commit says which
#    cells it wrote, step.scores.confidence how sure each was.
#
# 2. The bound is for every token of a forward: its rank r, from 1 for the surest, and its
#    confidence. The surest may be written in any case. Which c does it ask of the second?
