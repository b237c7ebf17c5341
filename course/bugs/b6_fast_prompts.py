"""Bug 6, 15 minutes: tokens per second grow with the length of the prompt.

An issue, as it came in:

    I compare strategies by the tokens per second that are printed. With prompts of 30 tokens I get
    about 100, with few-shot prompts of 1,500 tokens more than 1,000, although each forward is
    slower then. tokens_per_forward is 40 where it was 4, and the answers are the same. Is the
    cache that good?

Write a property that holds for the decoder as it is, and does not hold for one with this bug.
Graded are the decoder, this bug, and the five others: at most two of those may break it, too. A
property that every bug breaks says that something is wrong, but not what.

    model    a small random network of 64 tokens; 62 is EOS, 63 the mask
    returns  bool: True if the property holds

Call `generate` and `decode` inside the function, with whatever a user can set; what a Step and a
Result hold is said in dllm.py. Grade it with `python -m course b6`.
"""

from dllm import decode, generate


def holds(model) -> bool:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. `generate(...)` returns a Result; result.counters() is what every run prints.
#
# 2. result.answer() is the answer up to its EOS. What is its length, beside what is counted?
