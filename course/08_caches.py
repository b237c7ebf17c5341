"""Exercise 8, 40 minutes: Fast-dLLM's prefix and dual caches, as views.

Every forward of LLaDA computes the whole canvas again, the prompt and all masks, though a single
token has changed. Fast-dLLM (Wu et al., arXiv 2505.22618) reuses keys and values. They are not
exact: a key depends on the whole canvas, which has changed since. So they are refreshed at the
start of every block, where all is computed, and inside the block only a part is:

    prefix   the block and everything behind it: what lies before is reused
    dual     the block alone: what lies before and behind is reused

What a forward computes and sees is a `Pass` (model.py). The cache has a slot for every position:

    query    the positions to compute; their keys and values go into their slots, in every layer
    visible  the slots that they attend to. With None nothing is cached, and the query sees itself

Each is a slice with both ends, or a sorted int64 tensor of positions.

An example, worked by hand: a prompt of 4 tokens, an answer of 12 in blocks of 4; the second block
is open. A slot that is computed now is q, one that is seen as it was computed earlier is s.

    slot               0  1  2  3 | 4  5  6  7 | 8  9 10 11 |12 13 14 15
    its first forward  q  q  q  q | q  q  q  q | q  q  q  q | q  q  q  q
    then, prefix       s  s  s  s | s  s  s  s | q  q  q  q | q  q  q  q
    then, dual         s  s  s  s | s  s  s  s | q  q  q  q | s  s  s  s

    s         the canvas of the decode: s.x, int64 [B, S], holds prompt and answer. You may look at
              it, not change it
    window    window.start and window.end: the slots of the open block, the end excluded
              window.age, int: forwards since the block was entered, 0 in its first
    returns   Pass

Grade it with `python -m course 8`. When it passes, look at the slots under each token, fresh and
stale, beside the project's own:

    python -m course 8 --page caches.html

And compare the counter `rows` of three caches, on one question:

    python dllm.py --prompt "What is 25 + 17?" --strategy fast-dllm --threshold 1 --cache none
    python dllm.py --prompt "What is 25 + 17?" --strategy fast-dllm --threshold 1 --cache prefix
    python dllm.py --prompt "What is 25 + 17?" --strategy fast-dllm --threshold 1 --cache dual
"""

from model import Pass
from strategies import Window


def prefix(s, window: Window) -> Pass:
    raise NotImplementedError


def dual(s, window: Window) -> Pass:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. The canvas has s.x.shape[1] slots: s.x.shape[0] is how many are decoded at once.
#
# 2. All slots are seen in every forward, also in the first of a block: it is there that the cache
#    is filled, so `visible` is never None.
#
# 3. Only the query is different: Pass(slice(first, end), slice(0, S)). Write what `first` and `end`
#    are in the first forward, and what they are later.
