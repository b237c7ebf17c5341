"""Exercise 7, 20 minutes: the threshold that a language needs.

A threshold (Fast-dLLM, arXiv 2505.22618) writes together what the model is sure of. How sure is
sure enough? On a model without error (docs/oracle.md) this has an answer, another for each
language: the greatest threshold that is not safe. With any above it the decoder, sampling at
temperature 1, always writes a string of the language; with it, or a little less, not always.

An example, worked by hand: the language of ABAB and BABA.

    forward  cell          0     1     2     3
       1     canvas        _     _     _     _
             P(A), P(B)   1/2   1/2   1/2   1/2     whatever is drawn, it is drawn with 1/2
       2     canvas        _     A     _     _      none reached the threshold: one cell is written
             P(drawn)      1     -     1     1      the rest is certain

With a threshold of at most 1/2 four coins are thrown in the first forward, and seldom agree. Above
1/2 one coin is thrown, and the others follow. So the number is 0.5, for every length.

Say the number of three others, whose strings are all equally likely:

    permutation   every one of `length` letters once: ABC, ACB, BAC, BCA, CAB, CBA
    echo          one of four names, dots, and the name again: A..A, B..B, C..C, D..D
    lone          A's and exactly one B: BAA, ABA, AAB

    length    int, the number of cells, at least 3
    returns   float: the greatest threshold that is not safe

A threshold accepts what is drawn with a probability of at least this. Where nothing is accepted,
the surest drawn token is written alone. Mind what has been written already: in the third forward
of a permutation the masks are sure of other things than in the first.

Grade it with `python -m course 7`: the real decoder runs with a threshold just above yours, which
must never fail, and just below, which must. When it passes, watch one fail: the first command of
docs/oracle.md with `--threshold 0.5 --seed 2 --explain` writes BCFEDD. In the table of the second,
how good is each rule in permutation, and in how many forwards?

    python -m lab.bench oracle

Then say why no threshold below 1 is safe for all languages, and why a factor of 1 (exercise 3) is.
"""


def permutation(length: int) -> float:
    raise NotImplementedError


def echo(length: int) -> float:
    raise NotImplementedError


def lone(length: int) -> float:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. Two cells that are written together can be wrong only if each of the two might have been
#    something else. Look for the surest such pair, or more, that any forward of any run may meet.
#
# 2. A permutation with m letters left: what is the probability of any letter in any mask? For which
#    m can two masks still collide, and when is this probability the largest?
#
# 3. In `echo` the dots are certain from the beginning. What is left?
#
# 4. In `lone` two B's are one way to go wrong, each with a probability of 1 / length. There is
#    another, surer by far: what if no cell draws the B?
