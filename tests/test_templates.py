"""Templates: what stands in one is never changed, and a template of masks is none. Texts with holes are in test_infill.py."""

import functools

import pytest
import torch

from conftest import EOS, MASK, random_model, random_prompt
from dllm import decode, generate, prepare, stream
from shared import GREEDY, SEARCHING, SOME, STRATEGIES, TWICE, answers, run, some_cases

EOS_POLICIES = (None, "fill", "stop", "defer")


def holes(seed: int, length: int = 24) -> list[int]:
    """A template of random tokens, of which each block of 8 keeps between none and all, but not everywhere all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, EOS, (length,), generator=generator)
    keep = torch.rand(-(-length // 8), generator=generator).mul(1.6).sub(0.3).repeat_interleave(8)[:length]
    open_ones = torch.rand(length, generator=generator) >= keep
    open_ones[int(torch.randint(length, (), generator=generator))] = True
    return ids.masked_fill(open_ones, MASK).tolist()


def fill(seed: int, strategy, template, *prompts, **settings):
    prompts = list(prompts) or [random_prompt(seed, 5 + seed % 7)]
    return generate(random_model(seed), prompts, strategy, template=template, **{"block_length": 8} | settings)


@functools.cache
def together(number: int):
    """A batch of three with a template each, of which the last two end within a block: the prompts, the templates, and the result."""
    strategy, settings = SOME[number]
    prompts = [random_prompt(number + i, length) for i, length in enumerate((9, 3, 6))]
    templates = [holes(number + i, length) for i, length in enumerate((24, 19, 17))]
    return prompts, templates, fill(number, strategy, templates, *prompts, eos=EOS_POLICIES[number % 4], **settings | GREEDY)


def kept(answer: list[int], template: list[int]) -> bool:
    return MASK not in answer and all(given in (MASK, token) for token, given in zip(answer, template))


@some_cases
def test_what_is_given_stays_and_every_hole_is_filled(case):
    """Would catch a given token that a rule edits or takes back, a hole that is never opened, and a forward that can write nothing."""
    strategy, number = case[0], SOME.index(case)
    _, templates, result = together(number)
    for answer, template, forwards in zip(answers(result), templates, result.forwards):
        assert kept(answer, template) and answer[len(template) :] == [EOS] * (24 - len(template))
        assert EOS_POLICIES[number % 4] or EOS not in answer[: len(template)]
        assert forwards <= template.count(MASK) * (2 if strategy in TWICE else 1) or strategy in SEARCHING


@some_cases
def test_the_same_holds_for_samples_one_by_one(case):
    """Would catch a `decode` that starts from masks although it was given a template, and noise that overwrites what is given."""
    (strategy, settings), number = case, SOME.index(case)
    template = torch.tensor(holes(number))
    arguments = {"block_length": 8, "template": template, "temperature": 0.8} | settings
    *_, last = decode(random_model(number), random_prompt(number, 6), strategy, **arguments)
    assert all(kept(answer, template.tolist()) and EOS not in answer for answer in last.x[:, 6:].tolist()) or strategy in SEARCHING
    assert (last.x[:, 6:] == template)[:, template != MASK].all()


@some_cases
def test_templates_of_a_batch_equal_each_alone(case):
    """Would catch blocks that one row has open because another has, and padding behind a short template that is written."""
    (strategy, settings), number = case, SOME.index(case)
    prompts, templates, batch = together(number)
    row = number % 3
    padded = templates[row] + [EOS] * (24 - len(templates[row]))
    alone = fill(number, strategy, padded, prompts[row], eos=EOS_POLICIES[number % 4], **settings | GREEDY)
    assert answers(batch)[row] == answers(alone)[0] and batch.forwards[row] == alone.nfe == alone.forwards[0]


@some_cases
def test_a_block_that_one_row_was_given_whole_changes_nothing_for_it(case):
    """Would catch keys and values that are final since a forward in which other rows had holes, and this row, alone, would have run none."""
    (strategy, settings), number = case, SOME.index(case)
    prompts, text = [random_prompt(number + i, length) for i, length in enumerate((9, 3))], random_prompt(number, 24)
    templates = [[MASK] * 6 + text[6:16] + [MASK] * 8, [*text[:5], *[MASK] * 14, *text[19:]]]
    own = {"eos": EOS_POLICIES[number % 4], **settings, **GREEDY}
    batch, alone = (fill(number, strategy, t, *p, **own) for t, p in ((templates, prompts), (templates[0], prompts[:1])))
    assert answers(batch)[0] == answers(alone)[0] and batch.forwards[0] == alone.nfe


def test_the_rules_that_revise_would_change_what_is_given():
    """The control: without the canvas's protection, token editing and Saber do write to given cells."""
    changed = dict.fromkeys([name for name in ("editing", "saber") if name in STRATEGIES], 0)
    for strategy in changed:
        for seed in range(8):
            template = holes(seed)
            settings = {"threshold": 0.6, "edit_threshold": 0.4} if strategy == "editing" else {}
            canvas = prepare(random_model(seed), random_prompt(seed, 7), strategy, {"block_length": 8} | settings, template)
            canvas.given.fill_(False)
            for _, step in zip(range(24), stream(canvas)):
                answer = step.x[0, 7:].tolist()
                changed[strategy] += any(given not in (MASK, token) for token, given in zip(answer, template))
    assert changed.get("editing", 1) and not changed.get("saber")  # which takes back only what it has written itself


@some_cases
def test_a_template_of_masks_is_none(case):
    """Would catch a template that changes the order, the counters or the end of a decode."""
    (strategy, settings), number = case, SOME.index(case)
    prompt = random_prompt(number, 5 + number % 7)
    plain = run(number, strategy, prompt, **settings | {"eos": "suppress"})
    masks = fill(number, strategy, [MASK] * 24, prompt, **settings | GREEDY)
    assert plain.tokens.equal(masks.tokens) and plain.written.equal(masks.written) and plain.lengths == masks.lengths
    assert (plain.nfe, plain.rows, plain.forwards) == (masks.nfe, masks.rows, masks.forwards)
    assert plain.counters()["tokens"] == masks.counters()["tokens"]


def test_holes_see_what_stands_behind_them():
    """Would catch an infill that only continues: with a full view the text behind a hole changes what is written there."""
    changed = {"llada": 0, "ar": 0}
    for strategy in changed:
        for seed in range(6):
            before, behind = random_prompt(seed, 4), random_prompt(seed + 1, 4)
            settings = {"block_length": 1} if strategy == "ar" else {}
            one, other = (fill(seed, strategy, [*before, MASK, MASK, *last], **settings) for last in (behind, behind[::-1]))
            changed[strategy] += answers(one)[0][4:6] != answers(other)[0][4:6]
    assert changed["llada"] >= 3 and changed["ar"] == 0


def test_given_tokens_do_not_count_as_speed():
    """Would catch 22 tokens per forward for a text of which two were written."""
    template = random_prompt(0, 24)
    template[5] = template[20] = MASK
    counters = fill(0, "llada", template).counters()
    assert counters["tokens"] == 2 and counters["forwards"] == 2 and counters["tokens_per_forward"] == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"template": [1, 2]}, "no hole"),
        ({"template": []}, "template is empty"),
        ({"template": [1, 99, MASK]}, "holds the id 99"),
        ({"template": [[MASK], [MASK]]}, "1 prompts and 2 templates"),
        ({"template": [MASK], "gen_length": 8}, "gen_length is 8, expected none beside a template"),
        ({"template": [MASK], "block_length": 0}, "block_length is 0"),
        ({"template": [MASK] * 600}, "together more than the model's 512"),
    ],
)
def test_a_wrong_template_is_refused_before_any_work(given, message):
    """Would catch a traceback, or a decode of nothing."""
    with pytest.raises(ValueError, match=message):
        fill(0, "llada", **given)
