"""NBDiff: with blocks of one token it is the model of the next token that it was."""

import torch
from hypothesis import given

from conftest import EOS, MASK, random_model, random_prompt
from model import Pass
from shared import answers, run, same, seeds
from strategies.blocks import blocks_of, in_blocks


def left_to_right(seed: int, prompt: list[int]) -> list[int]:
    """What a model of the next token writes, the loop written out."""
    model, text = random_model(seed), list(prompt)
    while len(text) < len(prompt) + 24 and EOS not in text[len(prompt) :]:
        logits = model(torch.tensor([text]), Pass(mask=torch.ones(len(text), len(text)).tril().bool()))[0, -1]
        logits[MASK] = -torch.inf
        text.append(int(logits.argmax()))
    return text + [EOS] * (len(prompt) + 24 - len(text))


@given(seeds)
def test_blocks_of_one_token_are_written_as_a_model_of_the_next_token_writes(seed):
    """Would catch a shift, a position or a mask that is off by one."""
    prompt = random_prompt(seed, 7)
    assert run(seed, "nbdiff", prompt, block_length=1).tokens[0].tolist() == left_to_right(seed, prompt)


def test_longer_blocks_are_not():
    """Negative control: were the block causal, too, every length would give the same."""
    differ = 0
    for seed in range(6):
        prompt = random_prompt(seed, 7)
        differ += run(seed, "nbdiff", prompt, threshold=2.0).tokens[0].tolist() != left_to_right(seed, prompt)
    assert differ >= 4


def test_its_settings_are_those_of_its_parts():
    """Would catch a setting that is ignored."""
    for seed in range(4):
        mine = in_blocks(blocks_of("causal", 2), 0.4, 0.5, shift=1)
        own = {"threshold": 0.4, "sub_blocks": 2, "block_add_threshold": 0.5, "block_length": 4}
        assert same(run(seed, "nbdiff", **own), run(seed, mine, block_length=4))
    assert len({tuple(answers(run(seed, "nbdiff"))[0]) for seed in range(5)}) >= 4
