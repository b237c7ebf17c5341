"""Bug 1, 25 minutes: with a temperature it takes half the forwards, and talks nonsense.

An issue, as it came in:

    With `threshold=0.9` and temperature 0 my answers take about 20 forwards and are fine. At
    temperature 1 they take a few, and are word salad, much worse than what I get from sampling
    one token a forward at the same temperature. It looks as if an unlikely token counted as sure
    whenever it was drawn. The same prompt with another seed writes other places first.

Write a property that holds for the decoder as it is, and does not hold for one with this bug.
Graded are the decoder, this bug, and the five others: at most two of those may break it, too. A
property that every bug breaks says that something is wrong, but not what.

    model    a small random network of 64 tokens; 62 is EOS, 63 the mask
    returns  bool: True if the property holds

Call `generate` and `decode` inside the function, with whatever a user can set; what a Step and a
Result hold is said in dllm.py. Grade it with `python -m course b1`.
"""

from dllm import decode, generate


def holds(model) -> bool:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. `decode` yields a Step for each forward: step.scores has a token and its confidence for every
#    cell, step.logits what they were made from.
#
# 2. On the same canvas, the first forward of two decodes has the same logits. What may differ from
#    seed to seed, and what may not, where both have drawn the same token?
