"""Exercise 11, 45 minutes: D2F's pipeline: which blocks may open, which must move.

D2F (Wang et al., arXiv 2508.09192) has several blocks in flight. Before each forward two questions
are asked of every row of the batch:

    may_open   may the row open one more block? Yes if it has a block left to open, has written no
               EOS, and the last block that it opened is filled by at least the share `add`
    must_move  which blocks have to write a token in this forward, sure or not? Those whose
               predecessor is filled by at least the share `act`. All others write what is sure,
               which may be nothing

The first block's predecessor is the prompt, and the prompt is full. So the first block opens in the
first forward, and must always move: this is why a decode ends.

An example, worked by hand: 4 blocks of 4, three of them open, add = 0.5 and act = 0.75:

    block        0          1          2          3
    cells     a b c d    e f g #    # # # #    # # # #       letters are written, # are masks
    filled      1.0        0.75       0.0        0.0
    must move   x          x          x          .           0 by the prompt, 1 by 1.0, 2 by 0.75
    may open    no: block 2, the last that is open, is filled by 0, which is less than 0.5

A block that is full, or not open, may be said to have to move: nothing of it can be written.

    masked     bool [b, n, L]: which cells are masks, of n blocks of L cells, in b rows of the batch
    opened     int64 [b]: how many blocks each row has opened so far, 0 .. n
    ended      bool [b]: whether the row has written an EOS
    add, act   float, 0 .. 1; with 0 a block opens, or must move, in any case
    returns    may_open: bool [b]. must_move: bool [b, n]

Each row of the batch has a pipeline of its own. Grade it with `python -m course 11`. When it
passes, look at the blocks in flight, beside the project's own:

    python -m course 11 --page pipeline.html

With its usual threshold the tiny model is too sure for a pipeline: it fills each block at once.
Make it careful, and `--explain` says which blocks are open:

    python dllm.py --prompt "25 + 17 =" --strategy d2f --block-length 4 --skip-threshold 0.9999

Run it again with `--block-add-threshold 1`, one block at a time: fewer rows, or fewer forwards?
"""

from torch import Tensor


def may_open(masked: Tensor, opened: Tensor, ended: Tensor, add: float) -> Tensor:
    raise NotImplementedError


def must_move(masked: Tensor, act: float) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. How far each block is filled is a mean over its cells, [b, n]. Shift it by one block to the
#    right, with 1.0 for the prompt in front: then number i says how full the predecessor of block i
#    is, for i from 0 to n.
#
# 2. must_move compares the first n of these n + 1 numbers with `act`.
#
# 3. may_open needs one of them for each row, at the place `opened`: `gather` picks a column of each
#    line. A row with opened = n has no block left.
