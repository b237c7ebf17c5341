"""Bug 3, 20 minutes: short questions get other answers in company.

An issue, as it came in:

    I evaluate in batches of 8. Alone, "What is 2 + 3?" is answered rightly every time. In a batch
    with long stories it comes out as nonsense, and the shorter the question is beside the others,
    the worse. The longest question of each batch is always answered as it is alone. Batches in
    which all questions are of one length are fine.

Write a property that holds for the decoder as it is, and does not hold for one with this bug.
Graded are the decoder, this bug, and the five others: at most two of those may break it, too. A
property that every bug breaks says that something is wrong, but not what.

    model    a small random network of 64 tokens; 62 is EOS, 63 the mask
    returns  bool: True if the property holds

Call `generate` and `decode` inside the function, with whatever a user can set; what a Step and a
Result hold is said in dllm.py. Grade it with `python -m course b3`.
"""

from dllm import decode, generate


def holds(model) -> bool:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. `generate` takes a list of prompts of any lengths. What should a row of a batch be equal to?
#
# 2. Let the prompts be of different lengths, and leave EOS alone: eos="fill" decodes every block,
#    so that nothing can end early.
