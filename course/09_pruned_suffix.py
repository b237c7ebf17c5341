"""Exercise 9, 35 minutes: Streaming-dLLM's pruned suffix.

Behind the block that is being written lie nothing but masks. Streaming-dLLM (Xiao et al., arXiv
2601.17917) does not look at most of them: of the slots behind the block the next `window_size`
stay, and the very last of the canvas, which tells the model how long an answer may become. All
others are neither computed nor seen. So a forward costs no more on a canvas of 1,024 tokens than
on one of 256.

What a forward computes and sees is a `Pass` (model.py):

    query    the positions it computes; their keys and values go into their slots of the cache
    visible  the slots that they attend to; None without a cache: then they see each other

Each is a slice with both ends, or a sorted int64 tensor of positions. You are handed the Pass of
any other view, whose slots reach to the end of the canvas, and return the same without the far
suffix.

An example, worked by hand: a prompt of 4 tokens, an answer of 16 in blocks of 4, so 20 slots. The
first block is open and window_size is 3. A prefix cache has just computed everything, so that it
now computes the block and all behind it:

    slot     0  1  2  3 | 4  5  6  7 | 8  9 10 11   12 13 14 15   16 17 18 19
    query               | q  q  q  q | q  q  q                               q    pruned
    visible  v  v  v  v | v  v  v  v | v  v  v                               v

    query = 4 .. 10 and 19, visible = 0 .. 10 and 19: 19 keeps its place, it does not become 11

    at           Pass: query is a slice, visible a slice or None; other fields stay as they are
    window       window.start and window.end: the open block; window.suffix: slots behind it
    slots        int: of the canvas; the last one is slots - 1
    window_size  int, in tokens, or None: then nothing is pruned
    returns      Pass

Grade it with `python -m course 9`. When it passes, look at the slots under each token, the pruned
ones faint, beside the project's own:

    python -m course 9 --page pruned.html

Then compare the counter `rows` of these two, on a canvas of 1,024 tokens:

    python dllm.py --prompt "25 + 17 =" --strategy streaming --gen-length 1024
    python dllm.py --prompt "25 + 17 =" --strategy streaming --gen-length 1024 --window-size none
"""

from model import Pass
from strategies import Window


def pruned(at: Pass, window: Window, slots: int, window_size: int | None) -> Pass:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. First decide whether there is anything to prune. With window_size 3, how many slots behind the
#    block may there be until one is left out? The last slot stays in any case.
#
# 2. The kept slots, as one tensor, are arange(window.end + window_size) and slots - 1. That is
#    `visible`, if there was one.
#
# 3. The query is those of the kept slots that were in the query before. A dual cache computes only
#    the block: its query has nothing to lose, but what it sees has. `at._replace(query=...)` leaves
#    the other fields alone.
