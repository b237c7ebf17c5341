"""Exercise 12, 45 minutes: LLaDA's SFT loss, and a network that learns by it.

LLaDA (Nie et al., arXiv 2502.09992, algorithm 2) is trained so: draw a ratio t between 0 and 1 for
each example, mask each token of its answer with probability t, none of its prompt, and have the
network predict the masked ones. With A tokens in every answer, of which EOS fills what is behind
the text and counts like any other, the loss of one example is

    1 / A * sum over the masked tokens of -log p(token) / t

and that of a batch the mean over its examples. The factor 1 / t makes it an upper bound on
-log p(answer) / A, whichever cells happen to be masked; without it long masks would drown short
ones. An example, worked by hand, in which the network says 1/2 for every right token:

    answer   7  3  5  2         t = 0.5        log 2 = 0.693
    draws   .9 .1 .6 .4         a token is masked if its draw is below t
    noisy    7  M  5  M         2 masked: 2 * 0.693 / 0.5 / 4 = 0.693

Write both halves:

    corrupt   answer int64 [B, A]; t float [B], 0 < t <= 1; draws float [B, A], uniform in 0 .. 1,
              1 excluded; mask_id int
              returns (noisy int64 [B, A], masked bool [B, A])
    sft_loss  logits float [B, A, V] of the answer's cells; answer int64 [B, A], what was there
              before it was masked; masked bool [B, A]; t float [B]
              returns a float tensor without dimensions, through which gradients flow

There is a number to match. For a model without error the loss is, on average, the entropy of the
language: log N / A for N strings that are equally likely. With other weights it is another number.

Grade it with `python -m course 12`, which also trains a network of 90,000 weights for a second.
When it passes, train it for a minute on strings of ten brackets, watch the loss fall to log 42 /
10, and see what it then writes, in ten forwards and in one:

    python -m course.grade.sft_loss course/12_sft_loss.py --seconds 60
"""

from torch import Tensor


def corrupt(answer: Tensor, t: Tensor, draws: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


def sft_loss(logits: Tensor, answer: Tensor, masked: Tensor, t: Tensor) -> Tensor:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. t is one number for each example. As a column, [B, 1], it meets the right line of [B, A]; as it
#    is, it would meet the columns, and where B = A nobody would complain.
#
# 2. `masked_fill` makes a copy. The answer itself is needed for the loss.
#
# 3. `torch.nn.functional.cross_entropy(..., reduction="none")` takes logits [n, V] and answers [n]:
#    flatten the first two dimensions, and give the result its shape again.
#
# 4. Divide by A, not by the number of masked tokens: that would be 0 at times, and 1 / t is there
#    to make up for it.
