"""CARD: causal attention inside the block, too."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, MASK, random_model, random_prompt
from dllm import decode
from model import Pass
from shared import LENGTHS, answers, refused, run, same, seeds


@given(seeds, st.sampled_from([0.3, 0.6]))
def test_the_cache_is_exact(seed, threshold):
    """Would catch keys and values of masks that are kept as those of text: of a padded batch of two."""
    prompts = [random_prompt(seed, 9), random_prompt(seed + 1, 4)]
    cached, uncached = (run(seed, "card", *prompts, cache=cache, threshold=threshold) for cache in ("exact", "none"))
    assert same(cached, uncached) and (cached.rows < uncached.rows or cached.nfe == 1)


@given(seeds)
def test_blocks_of_one_token_are_written_as_a_model_of_the_next_token_writes(seed):
    """Would catch a shift, a position or a mask that is off by one: the loop of such a model, written out."""
    model, text = random_model(seed), random_prompt(seed, 7)
    while len(text) < 31 and EOS not in text[7:]:
        logits = model(torch.tensor([text]), Pass(mask=torch.ones(len(text), len(text)).tril().bool()))[0, -1]
        logits[MASK] = -torch.inf
        text.append(int(logits.argmax()))
    text += [EOS] * (31 - len(text))
    assert run(seed, "card", random_prompt(seed, 7), block_length=1).tokens[0].tolist() == text


def test_nothing_ever_looks_ahead():
    """Would catch a block that is seen both ways; and, as a control, NBDiff's is."""
    for step in decode(random_model(0), [1, 2, 3], "card", **LENGTHS):
        assert not step.at.mask.triu(1 + step.at.query.start).any()
    pairs = [(run(seed, "card", threshold=0.5), run(seed, "card", threshold=0.5, block_length=4)) for seed in range(6)]
    assert sum(answers(one) != answers(two) for one, two in pairs) >= 3


def test_a_wrong_setting_is_named():
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "card", "cache is 'dual', expected one of none, exact", cache="dual")
