"""Exercise 10, 40 minutes: D2F's block mask, and the cache that it makes exact.

D2F (Wang et al., arXiv 2508.09192) decodes under a mask: a block sees the prompt, the blocks before
it and itself, never a later one. Inside a block and inside the prompt attention goes both ways. So
what is computed for a block that is full, as are all before it, can never change again: its keys
and values may be kept, and nothing is approximate. Fast-dLLM's caches lack that.

An example, worked by hand: a prompt of 2 tokens and blocks of 2. Who (a line) sees which slot:

    slot       0  1 | 2  3 | 4  5
    0  prompt  x  x | .  . | .  .
    1  prompt  x  x | .  . | .  .
    2  block 0 x  x | x  x | .  .
    3  block 0 x  x | x  x | .  .
    4  block 1 x  x | x  x | x  x
    5  block 1 x  x | x  x | x  x

A forward need not compute every slot: `first` is the first that it does, `end` the end of the last
block that is open, so that the mask has the lines first .. end - 1 of the table above, and the
columns 0 .. end - 1. For first = 2 and end = 4 it is four times True in two lines.

Write both: the mask, and what a forward computes and sees with the exact cache.

    block_mask  prompt_length, block_length, first, end: int, in slots
                returns bool [end - first, end], True where a line sees a column
    exact       s.prompt_length and s.block_length: int; window.final: the slots before it hold the
                keys and values of final tokens; window.end: the end of the last open block. Behind
                that nothing exists yet
                returns Pass: query, visible (model.py), each a slice, and the mask

Grade it with `python -m course 10`. When it passes, look at the slots under each token: fresh,
frozen (kept, and exact), and nothing behind the last open block:

    python -m course 10 --page mask.html

Then have the same decoded without the cache: the same tokens, forward for forward, in more rows:

    python dllm.py --prompt "What is 25 + 17?" --strategy d2f --block-length 8 --cache exact
    python dllm.py --prompt "What is 25 + 17?" --strategy d2f --block-length 8 --cache none
"""

from torch import Tensor

from model import Pass
from strategies import Window


def block_mask(prompt_length: int, block_length: int, first: int, end: int) -> Tensor:
    raise NotImplementedError


def exact(s, window: Window) -> Pass:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. Give every slot a number: that of its block, and the prompt one that is less than all of these.
#    A slot sees those whose number is not larger than its own.
#
# 2. A line is a number that is compared with all columns: [Q, 1] against [K].
#
# 3. Whole-number division of a negative position is a trap: the prompt may be longer than a block,
#    and yet it is one. `clamp` helps.
#
# 4. The cache: what is final is not computed again, and is seen; so the query begins at
#    window.final, and the visible slots at 0.
