"""Bug 2, 25 minutes: temperature changes how many tokens a forward writes, the wrong way.

An issue, as it came in:

    We sample with a threshold. With a temperature of 0.01, which I took for as good as greedy, each
    block is written in a single forward, whatever the threshold, and the answers are broken; with
    temperature 0 everything is right. The other way round, a colleague set the temperature to 1e9
    with strategy llada, to get uniformly random tokens, and saw every block filled strictly from
    left to right: all confidences are 1/63 there.

Write a property that holds for the decoder as it is, and does not hold for one with this bug.
Graded are the decoder, this bug, and the five others: at most two of those may break it, too. A
property that every bug breaks says that something is wrong, but not what.

    model    a small random network of 64 tokens; 62 is EOS, 63 the mask
    returns  bool: True if the property holds

Call `generate` and `decode` inside the function, with whatever a user can set; what a Step and a
Result hold is said in dllm.py. Grade it with `python -m course b2`.
"""

from dllm import decode, generate


def holds(model) -> bool:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. What is the limit of sampling when the temperature goes to 0? And what is it here?
#
# 2. A temperature that is small, but not 0, is one more setting of `generate`; compare with the
#    same without it. Tokens are one thing to compare, forwards another.
