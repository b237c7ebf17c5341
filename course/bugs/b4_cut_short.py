"""Bug 4, 25 minutes: answers are cut off in batches.

An issue, as it came in:

    With `eos="stop"` answers of a batch are often cut off: 16 or 32 tokens of text, in the middle
    of a sentence, and then nothing but EOS. It is never the answer that is the first to be
    finished, always others. One prompt at a time it never happens. All of my prompts are of the
    same length.

Write a property that holds for the decoder as it is, and does not hold for one with this bug.
Graded are the decoder, this bug, and the five others: at most two of those may break it, too. A
property that every bug breaks says that something is wrong, but not what.

    model    a small random network of 64 tokens; 62 is EOS, 63 the mask
    returns  bool: True if the property holds

Call `generate` and `decode` inside the function, with whatever a user can set; what a Step and a
Result hold is said in dllm.py. Grade it with `python -m course b4`.
"""

from dllm import decode, generate


def holds(model) -> bool:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. You need a batch in which one answer ends early and another does not. Try some prompts alone
#    first: result.lengths says how long their answers are. With eos="stop" and short blocks an
#    answer ends at its block.
#
# 2. What should a row of a batch be equal to? Let the prompts be of one length: others have trouble
#    with company for another reason.
