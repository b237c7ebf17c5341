"""Autoregressive decoding against next-token prediction without a cache."""

import pytest
import torch
from hypothesis import given

from conftest import EOS, MASK, random_model, random_prompt
from model import Pass
from shared import run, seeds
from strategies import Strategy
from strategies.ar import causal
from strategies.llada import quota, serial


@given(seeds)
def test_ar_is_next_token_prediction_without_a_cache(seed):
    """Would catch logits of the wrong slot, a cache that misses a token, and a prompt that sees its own future."""
    model, prompt = random_model(seed), random_prompt(seed, 1 + seed % 7)
    result = run(seed, "ar", prompt, block_length=1)
    text = list(prompt)
    while len(text) < len(prompt) + 24 and EOS not in text:
        Q = len(text)
        logits = model(torch.tensor([text]), Pass(mask=torch.ones(Q, Q, dtype=torch.bool).tril()))[0, -1]
        logits[MASK] = -torch.inf
        text.append(logits.argmax().item())
    written = len(text) - len(prompt)
    assert result.tokens[0].tolist() == text + [EOS] * (24 - written)
    assert result.nfe == written and result.rows == len(prompt) + written - 1


def test_a_causal_view_is_not_read_without_its_shift():
    """Would catch logits that are taken for those of their own slot, and blocks of several tokens."""
    for own in ({}, {"block_length": 1, "fixed": True}, {"block_length": 8, "fixed": True, "shift": 1}):
        with pytest.raises(ValueError, match="a causal view needs"):
            Strategy(quota, causal, serial, **own)
    with pytest.raises(ValueError, match="block_length is 8, expected 1, which"):
        run(0, "ar")
