"""Exercise 6, 30 minutes: how often one step is right, predicted by a number.

A model gives the marginals of the cells: for each cell how likely each token is there. If all masks
are written in one forward, each is drawn from its own marginal, and none knows of the others. So
even a model without error writes what it should not. How often it is right is the one-step
validity: the probability that cells drawn one by one from their marginals make a string of the
language. docs/oracle.md has five languages and this number for each; lab/oracle.py is a model
without error for any language that can be listed. Every masked diffusion model takes this step,
LLaDA (arXiv 2502.09992) too, when it writes several tokens in a forward.

An example, worked by hand: the language of ABAB and BABA, all strings equally likely.

    cell          0     1     2     3
    P(A)         1/2   1/2   1/2   1/2    half of the strings have A there
    P(B)         1/2   1/2   1/2   1/2
    ABAB         1/2 * 1/2 * 1/2 * 1/2 = 1/16, and BABA the same: one step is right in 1/8

Write two languages of A and B, and predict the number of each by a formula, without listing
anything; `length` is at least 2, every string is equally likely and listed once:

    palindromes   what reads the same from both ends: of length 3 AAA, ABA, BAB, BBB
    lone          exactly one B: of length 3 BAA, ABA, AAB. Mind: its marginals are not 1/2

    length                   int, the number of cells
    palindromes, lone        return the strings of that length: a list, or any iterable
    palindromes_validity,    return the one-step validity as a float
    lone_validity

Before you compute: which of the two is harder for a long string? Grade it with
`python -m course 6`: your languages become oracles, the real decoder writes 2,000 strings of them
in one forward each, and your number is held against the count. When it passes, compute both for a
length of 100: one is 1e-15. Why is the other more than a third? For the five other languages the
columns "theory" and "all at once" of this stand beside each other:

    python -m lab.bench oracle
"""

from collections.abc import Iterable


def palindromes(length: int) -> Iterable[str]:
    raise NotImplementedError


def palindromes_validity(length: int) -> float:
    raise NotImplementedError


def lone(length: int) -> Iterable[str]:
    raise NotImplementedError


def lone_validity(length: int) -> float:
    raise NotImplementedError


# --- hints, one after the other -------------------------------------------------------------------
#
# 1. `itertools.product("AB", repeat=n)` lists all strings of n symbols. Of a palindrome the first
#    half says everything, and the middle of an odd one belongs to no pair.
#
# 2. In a palindrome every marginal is 1/2, so every string of the language is as likely as any
#    other string: how many of all 2 ** length are palindromes? Or: how many pairs must agree?
#
# 3. In `lone` a cell is B in one string of `length`. The probability that the B's come out as in
#    one given string of the language is (1 / length) * (1 - 1 / length) ** (length - 1).
#
# 4. There are `length` such strings, of which only one can come out: their probabilities add up.
