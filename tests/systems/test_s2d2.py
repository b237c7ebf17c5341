"""S2D2: whatever is drafted, what is written is what blocks of one token would write."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, random_model, random_prompt
from dllm import generate
from kernels import Scores
from shared import GREEDY, refused, run, same, seeds
from strategies import build
from strategies.blocks import blocks_of, in_blocks
from strategies.s2d2 import Verifier

ways = st.sampled_from([("causal", 1), ("token", 0), ("token", 1), ("causal", 0)])


class Liar(Verifier):
    """A verifier that is shown other drafts than the model's: random ones."""

    def __call__(self, s, window, scores, candidates, logits, noise):
        draw = torch.Generator().manual_seed(s.nfe)
        drafts = torch.randint(0, EOS, scores.token.shape, generator=draw)
        return super().__call__(s, window, Scores(drafts, scores.doubt), candidates, logits, noise)


class Believer(Verifier):
    """A verifier to whom every draft is right."""

    def read(self, s, window, drafted):
        return torch.nn.functional.one_hot(super().read(s, window, drafted).argmax(-1) * 0 + drafted, s.model.config.vocab_size).float()


def one_by_one(seed: int, context: str, shift: int, *prompts, **own):
    strategy = in_blocks(blocks_of(context), 2.0, shift=shift)
    return run(seed, strategy, *prompts, block_length=1, **own)


def text(result) -> list[list[int]]:
    """Answers up to their end: what a block holds behind it nobody reads."""
    return [result.answer(row) for row in range(len(result.lengths))]


@given(seeds, ways, st.sampled_from([Verifier, Liar]), st.sampled_from([0.1, 0.9]))
def test_what_is_written_is_what_blocks_of_one_token_write(seed, way, verifier, threshold):
    """Would catch a draft that is believed, a row that reads its own token, a place off by one, keys and values of a draft that stay: of
    a padded batch of two, whatever was drafted."""
    (context, shift), prompts = way, [random_prompt(seed, 9), random_prompt(seed + 1, 4)]
    strategy = replace(build("s2d2", context=context, shift=shift, threshold=threshold), choose=verifier(0.0))
    result = run(seed, strategy, *prompts)
    assert text(result) == text(one_by_one(seed, context, shift, *prompts)) and result.nfe <= 2 * 24 * 2
    if verifier is Verifier:
        assert same(result, run(seed, "s2d2", *prompts, context=context, shift=shift, threshold=threshold))


@pytest.mark.parametrize(
    "context, shift, verifier", [("block", 0, Verifier), ("block", 1, Verifier), ("token", 0, Believer), ("causal", 1, Believer)]
)
def test_otherwise_it_is_not(context, shift, verifier):
    """Negative controls: where finished blocks were read both ways the two modes have read another text; and where every draft is right
    nothing is verified."""
    differ = 0
    for seed in range(8):
        strategy = replace(build("s2d2", context=context, shift=shift), choose=verifier(0.0))
        differ += text(run(seed, strategy)) != text(one_by_one(seed, context, shift))
    assert differ >= 5


@given(seeds, ways)
def test_a_template_is_kept_and_read(seed, way):
    """Would catch a run that goes on behind a given token as if it had been drafted."""
    context, shift = way
    mask = random_model(0).config.mask_token_id
    template = [mask, mask, 3, mask, 4, 5, mask, mask, mask, 6, mask, mask]
    own = {"eos": "suppress", "template": template, **GREEDY}
    mine = generate(random_model(seed), [1, 2, 3], "s2d2", context=context, shift=shift, block_length=4, **own)
    theirs = generate(random_model(seed), [1, 2, 3], in_blocks(blocks_of(context), 2.0, shift=shift), block_length=1, **own)
    assert mine.tokens.equal(theirs.tokens)


def test_never_verifying_is_blocks_by_threshold():
    """Would catch a verifier that changes what it does not read, and a worth that nothing reaches but itself."""
    for seed in range(4):
        plain = in_blocks(blocks_of("causal"), 0.5, shift=1)
        assert same(run(seed, "s2d2", threshold=0.5, worth=None), run(seed, "s2d2", threshold=0.5, worth=9.0), run(seed, plain))
        always, some = (run(seed, "s2d2", threshold=0.5, worth=worth) for worth in (0.0, 2.0))
        assert always.nfe % 2 == 0
    assert any(run(seed, "s2d2", threshold=0.5, worth=1.5).tokens.ne(run(seed, "s2d2").tokens).any() for seed in range(8))


def test_what_a_check_costs():
    """Would catch a count that leaves out the forward that verifies: as many rows as the block has, twice as many without a shift."""
    prompt = random_prompt(0, 6)
    for (context, shift), rows in ((("causal", 1), 8), (("token", 0), 16)):
        one = run(0, "s2d2", prompt, context=context, shift=shift, gen_length=8)
        assert one.rows == one.nfe // 2 * (8 + shift + rows) + 6 - shift  # the first draft computes the prompt, too


def test_samples_are_those_of_the_verifier():
    """Would catch noise that the draft had and the verifier has not: with the same noise a draft that the model stands by is kept."""
    one, two = (run(1, "s2d2", temperature=0.7, seed=seed) for seed in (0, 1))
    assert text(one) != text(two) and same(one, run(1, "s2d2", temperature=0.7, seed=0))
    assert one.nfe < 2 * len(text(one)[0]) or len(text(one)[0]) < 2


def test_a_wrong_setting_is_named():
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "s2d2", "cfg_scale is 0.5, expected 0 beside a verifier", cfg_scale=0.5)
    refused(random_model(0), "s2d2", "shift is 2, expected between 0 and 1", shift=2)
