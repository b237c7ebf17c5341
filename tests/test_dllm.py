"""Contracts of the loop, for every strategy, on small random models, each with a control that shows the test could fail."""

import copy
import functools
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dllm
from conftest import EOS, MASK, random_model, random_prompt
from dllm import Settings, StepLimit, decode, finish, generate, prepare, stream
from shared import (
    CACHES,
    CASES,
    DRAFTING,
    GREEDY,
    LENGTHS,
    REVISING,
    SEARCHING,
    TAKING_BACK,
    TWICE,
    again,
    answers,
    every_case,
    refused,
    run,
    same,
    seeds,
    some_cases,
)  # fmt: skip
from strategies import STRATEGIES, Strategy, options
from strategies.fast_dllm import threshold_rule
from strategies.llada import full, serial


def test_every_strategy_and_every_choice_of_cache_is_among_the_cases():
    """Would catch a new strategy that the properties below never see."""
    assert {name for name, _ in CASES} == set(STRATEGIES)
    for name, builder in STRATEGIES.items():
        if "cache" in options(builder):
            assert set(options(builder)["cache"].choices) == {settings["cache"] for other, settings in CASES if other == name}


# --- contracts of every strategy -----------------------------------------------------------------------------------------------------

POLICIES = ("fill", "stop", "suppress", "defer")  # one of them a case, so that all five caches of a strategy meet several


class Seen(NamedTuple):
    """What a test asks of a Step, but for what the next one writes."""

    step: dllm.Step
    moving: torch.Tensor  # bool [b, n]: blocks that must move, and can
    written: torch.Tensor  # bool [b, n]: blocks in which a candidate was committed


@functools.cache
def followed(number: int) -> tuple[list[list[int]], dllm.Result, list[Seen]]:
    """A batch of three decoded as this case says, step by step: the prompts, the result, and what was seen."""
    (strategy, settings), eos = CASES[number], POLICIES[number % 4]
    prompts, L = [random_prompt(number + i, length) for i, length in enumerate((9, 3, 6))], settings.get("block_length", 8)
    canvas = prepare(random_model(number), prompts, strategy, LENGTHS | GREEDY | settings | {"eos": eos})
    seen = []

    def noted(steps):
        for step in steps:
            blocks = lambda cells: cells.unflatten(1, (-1, L)).any(-1)
            seen.append(Seen(step, step.window.must & blocks(step.candidates), blocks(step.commit & step.candidates)))
            yield step

    return prompts, finish(canvas, noted(stream(canvas))), seen


@every_case
def test_no_mask_is_left_and_the_prompt_is_untouched(case):
    """Would catch a mask that is returned, a written prompt, a wasted forward, or more forwards than tokens (and drafts)."""
    strategy, number = case[0], CASES.index(case)
    prompts, result, _ = followed(number)
    for prompt, answer, row, forwards in zip(prompts, answers(result), result.tokens.tolist(), result.forwards):
        assert row[: result.prompt_length] == [EOS] * (result.prompt_length - len(prompt)) + prompt
        assert MASK not in answer and (EOS not in answer or POLICIES[number % 4] != "suppress")
        assert forwards <= (48 if strategy in TWICE else 24) or strategy in SEARCHING


@some_cases
def test_the_same_holds_for_samples(case):
    """Would catch a sampled mask, or EOS where it is suppressed, and forwards without a token."""
    strategy, settings = case
    seed = CASES.index(case)
    result = run(seed, strategy, temperature=0.8, eos="suppress", **settings)
    assert not {MASK, EOS} & set(answers(result)[0])
    assert result.forwards == [result.nfe] and (result.nfe <= (48 if strategy in TWICE else 24) or strategy in SEARCHING)


@every_case
def test_each_row_of_a_batch_equals_the_row_alone(case):
    """Would catch rows that see each other, padding that is seen, and a row that waits or stops with the others: tokens and forwards."""
    (strategy, settings), number = case, CASES.index(case)
    prompts, together, _ = followed(number)
    row = number % 3  # of the longest prompt, the shortest, or one between
    alone = run(number, strategy, prompts[row], **settings | {"eos": POLICIES[number % 4]})
    assert answers(together)[row] == answers(alone)[0]
    assert (together.forwards[row], together.lengths[row]) == (alone.nfe, alone.lengths[0])


@every_case
def test_every_forward_commits_in_every_block_that_must_move(case):
    """Would catch a forward that commits nothing, a token outside the candidates, or one that is written twice."""
    strategy, forwards = case[0], 0
    for step, moving, written in followed(CASES.index(case))[2]:
        forwards += int(step.ran.max())
        assert step.nfe == forwards and step.ran.any() == (step.rows > 0) and (step.ran.all() or strategy in DRAFTING)
        assert strategy in REVISING or not (step.commit & ~step.candidates).any()
        assert not (step.commit & (step.token == MASK)).any() or strategy in TAKING_BACK
        # a row that is done with the block waits for the others; where no block must move the rule moves each row
        assert moving.any() or strategy == "wedlm" and step.commit.any(-1).all()
        assert (written | ~moving).all() or strategy == "remdm"  # which may take back at once what it has just written


@given(seeds, st.sampled_from([("llada", {"remasking": "random"}), ("fast-dllm", {"threshold": 0.5}), ("d2f", {"skip_threshold": 0.5})]))
def test_the_same_seed_gives_the_same_tokens(seed, case):
    """Would catch randomness that the seed does not govern."""
    strategy, settings = case
    one, two = (again(seed, strategy, temperature=1.0, seed=seed, **settings) for _ in range(2))
    assert one.tokens.equal(two.tokens) and one.nfe == two.nfe


def test_other_seeds_give_other_tokens():
    """Negative control for the test above, and for greedy decoding: there the seed must not matter."""
    assert len({tuple(answers(run(3, "llada", temperature=1.0, seed=seed))[0]) for seed in range(5)}) == 5
    assert len({tuple(answers(run(3, "llada", remasking="random", seed=seed))[0]) for seed in range(5)}) > 1
    assert len({tuple(answers(run(3, "llada", seed=seed))[0]) for seed in range(5)}) == 1


def test_the_random_models_are_worth_decoding():
    """Equalities on a model that repeats three tokens prove nothing: the outputs here are varied and the confidences spread out."""
    distinct = []
    for seed in range(9):
        steps = list(decode(random_model(seed), random_prompt(seed, 6), "llada", **LENGTHS))
        distinct.append(len(set(steps[-1].x[0, 6:].tolist())))
        sure = torch.cat([step.scores.confidence[step.candidates] for step in steps])
        assert sure.quantile(0.1) < 0.5 < sure.quantile(0.9)
    assert sorted(distinct)[4] >= 7


@given(seeds)
def test_guidance_of_scale_zero_is_none_and_guidance_is_its_formula(seed):
    """Would catch swapped halves, and a weight that is off by one."""
    model, prompt = random_model(seed), random_prompt(seed, 6)
    step = next(decode(model, prompt, "llada", cfg_scale=0.7, **LENGTHS))
    with_prompt = torch.tensor([prompt + [MASK] * 24])
    without = torch.tensor([[MASK] * 30])
    guided, unguided = model(with_prompt), model(without)
    expected = (unguided + 1.7 * (guided - unguided))[:, 6:14]
    expected[..., MASK] = -torch.inf
    torch.testing.assert_close(step.scores.confidence, expected.softmax(-1).amax(-1), rtol=1e-4, atol=1e-5)
    assert step.rows == 60
    assert same(run(seed, "llada", cfg_scale=0.0), run(seed, "llada"))


ENDING = (10, 11, 23, 27, 33, 36, 38)  # models that write an EOS before the last block


@some_cases
def test_eos_policies_differ_only_in_what_they_promise(case):
    """Would catch a policy that some strategy ignores."""
    strategy, settings = case
    seed, k = ENDING[CASES.index(case) % len(ENDING)], settings.get("block_length", 8)
    filled, stopped = (answers(run(seed, strategy, eos=eos, **settings))[0] for eos in ("fill", "stop"))
    if EOS in stopped:
        end = (stopped.index(EOS) // k + 1) * k
        # later blocks of a pipeline may be open already, and a block may be edited once more by the next
        if (
            strategy not in ("d2f", "d3llm", "dllm-var", "wedlm")
            and not settings.get("overlap")
            and settings.get("block_add_threshold") is None
        ):
            assert stopped[:end] == filled[:end]
            assert stopped[end:] == [EOS] * (24 - end)
    else:
        assert stopped == filled
    steps = decode(random_model(seed), random_prompt(seed, 5 + seed % 7), strategy, **LENGTHS | {"eos": "defer"} | settings)
    for step in steps:
        late = step.commit & (step.scores.token == EOS)
        early = step.candidates & (step.scores.token != EOS)
        by_block = (late.unflatten(1, (-1, k)).any(-1), (early & ~step.commit).unflatten(1, (-1, k)).any(-1))
        assert not (by_block[0] & by_block[1]).any() or "threshold" not in settings  # a quota may reach down to an EOS
    assert not (step.x == MASK).any() or strategy in SEARCHING


def test_an_eos_comes_to_these_tests():
    """Negative control for the test above: without an EOS it says nothing."""
    assert all(EOS in answers(run(seed, "llada", eos="fill"))[0][:16] for seed in ENDING)
    assert sum(not run(seed, "llada", eos="defer").written.equal(run(seed, "llada", eos="fill").written) for seed in ENDING) >= 4


TURN = 7  # a token that some of the models below write


def ends_twice(seed: int):
    """A model of which another token, besides EOS, ends an answer, as the end of a turn does for LLaDA-Instruct."""
    model = copy.copy(random_model(seed))
    model.config = replace(model.config, end_token_ids=(TURN,))
    return model


def wrote(seed: int, eos: str, **settings) -> dllm.Result:
    return generate(ends_twice(seed), random_prompt(seed, 5), "fast-dllm", eos=eos, **{"threshold": 0.4} | LENGTHS | settings)


TURNED = [seed for seed in range(40) if TURN in answers(wrote(seed, "fill"))[0][:16]]  # before the last block


@pytest.mark.parametrize("seed", TURNED)
def test_a_second_end_token_ends_an_answer_as_eos_does(seed):
    """Would catch an end of a turn that is written where it is suppressed, written early where it is deferred, counted as text, or behind
    which a decode goes on: everywhere that EOS counts, both count."""
    filled, stopped, deferred, without = (wrote(seed, eos) for eos in ("fill", "stop", "defer", "suppress"))
    first = min(answers(filled)[0].index(token) for token in (TURN, EOS) if token in answers(filled)[0])
    assert filled.lengths == [first] and filled.counters()["tokens"] == first and len(filled.answer()) == first
    last = (first // 8 + 1) * 8  # stop fills with EOS behind the block that holds the end, and writes the same before
    assert answers(stopped)[0][:last] == answers(filled)[0][:last] and answers(stopped)[0][last:] == [EOS] * (24 - last)
    assert not {TURN, EOS, MASK} & set(answers(without)[0]) and without.lengths == [24]
    for step in decode(ends_twice(seed), random_prompt(seed, 5), "llada", eos="defer", **LENGTHS):
        late = torch.isin(step.scores.token, torch.tensor([TURN, EOS])) & step.candidates
        assert not (late & step.commit).any() or late[step.candidates].all()
    assert deferred.tokens.shape == filled.tokens.shape


def test_a_second_end_token_fills_no_hole():
    """Would catch a hole of five that comes out as two tokens."""
    answer = [MASK] * 5 + [1, 2, 3]
    filled = [generate(ends_twice(seed), random_prompt(seed, 5), "fast-dllm", answer, block_length=8, threshold=0.0) for seed in TURNED]
    once = [generate(random_model(seed), random_prompt(seed, 5), "fast-dllm", answer, block_length=8, threshold=0.0) for seed in TURNED]
    assert all(result.lengths == [8] for result in filled)
    assert any(TURN in answers(result)[0] for result in once)  # negative control


def test_some_models_end_a_turn():
    """Negative control for the tests above."""
    assert len(TURNED) >= 3


# --- limits and counters ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return random_model(0)


def test_steps_are_a_cap_for_thresholds_and_hitting_it_says_so(model):
    """Would catch a cap that is ignored, or that returns masks."""
    one_by_one = LENGTHS | {"threshold": 2.0}
    assert generate(model, [1, 2, 3], "fast-dllm", steps=24, **one_by_one).nfe == 24
    with pytest.raises(StepLimit, match="steps=23 forwards are spent, 1 masks are left"):
        generate(model, [1, 2, 3], "fast-dllm", steps=23, **one_by_one)


def test_steps_spread_the_tokens_of_llada(model):
    """Would catch a quota taken over the canvas instead of the block."""
    assert [int(step.commit.sum()) for step in decode(model, [1, 2], "llada", steps=9, **LENGTHS)] == [3, 3, 2] * 3
    assert generate(model, [1, 2], "llada", steps=48, **LENGTHS).nfe == 24  # a forward that could commit nothing is not run


def test_rows_count_what_was_computed(model):
    """Would catch counters that hide the work: 2 rows of 5 + 24 positions, then of what each cache leaves to do."""

    def rows(cache):
        steps = list(decode(model, [[1] * 5] * 2, "fast-dllm", cache=cache, threshold=2.0, **LENGTHS))
        return [steps[i].rows for i in (0, 1, 8, 9)]

    assert rows("none") == [58, 58, 58, 58]
    assert rows("prefix") == [58, 48, 58, 32]
    assert rows("dual") == [58, 16, 58, 16]


def test_forwards_in_which_a_row_waits_are_not_its_own():
    """Would catch a row that pays for the others of its batch, and a result that hides what was run."""
    prompts = [random_prompt(seed, 6) for seed in range(3)]
    result = run(0, "fast-dllm", *prompts, threshold=0.5)
    assert len(set(result.forwards)) > 1 and max(result.forwards) <= result.nfe <= sum(result.forwards)


# --- what is refused -------------------------------------------------------------------------------------------------------------------


def test_decode_checks_before_the_first_step(model):
    """Would catch a generator that finds the mistake only when it is iterated."""
    with pytest.raises(ValueError, match="gen_length 24 is not a multiple of block_length 7: the nearest is 21"):
        decode(model, [1], gen_length=24, block_length=7)


def test_a_prompt_may_be_a_tensor_a_list_or_a_list_of_lists(model):
    """Would catch a form of prompt that decodes to something else."""
    forms = [[4, 5, 6], [[4, 5, 6]], torch.tensor([[4, 5, 6]]), torch.tensor([4, 5, 6])]
    assert same(*(generate(model, form, "fast-dllm", **LENGTHS) for form in forms))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gen_length": 0}, "gen_length is 0"),
        ({"block_length": 0}, "block_length is 0"),
        ({"gen_length": 24.0}, "gen_length is 24.0, expected a value of type int"),
        ({"steps": 10}, "steps 10 do not divide evenly among 3 blocks: the nearest is 9"),
        ({"temperature": -1.0}, "temperature is -1.0, expected"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"cfg_scale": -0.5}, "cfg_scale is -0.5"),
        ({"eos": "maybe"}, "eos is 'maybe', expected one of fill, stop, suppress, defer"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True, expected a value of type int"),
        ({"compile": "yes"}, "compile is 'yes', expected a value of type bool"),
        ({"colour": 2}, "strategy llada has no setting colour: it takes remasking"),
        ({"strategy": "lada"}, "unknown strategy 'lada': choose one of llada, fast-dllm"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [[1], []]}, "prompt 1 is empty"),
        ({"prompt": [1, MASK]}, "the prompt holds the mask token, id 39"),
        ({"prompt": [1, 40]}, "the prompt holds the id 40, but the vocabulary ends at 39"),
        ({"prompt": [1] * 489}, "the prompt has 489 tokens, gen_length is 24: together more than the model's 512"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_valid(model, settings, message):
    """Would catch a mistake that surfaces later, or as something else."""
    refused(model, settings.get("strategy", "llada"), message, **{k: v for k, v in settings.items() if k != "strategy"})


def test_what_just_fits_is_taken(model):
    """The control for the longest prompt above."""
    assert next(decode(model, [1] * 488, "llada", **LENGTHS)).rows == 512


def test_every_setting_is_explained_once():
    """Would catch a setting without a meaning in the help, or a meaning of a setting that is gone (options raises KeyError)."""
    for function in (Settings, *STRATEGIES.values()):
        assert all(option.meaning for option in options(function).values())
    assert CACHES == ("none", "prefix", "dual", "vicinity", "frozen")


@pytest.mark.parametrize("strategy", ["llada", "fast-dllm", "d2f", "saber", "credit", "freedave"])
def test_a_forward_that_writes_nothing_is_an_error(strategy, monkeypatch):
    """Would catch a decode that never ends, because what is to be written stands there already, or is the mask."""
    model = random_model(0)
    monkeypatch.setattr(dllm.Canvas, "forbid", lambda s, logits: logits[..., MASK].fill_(100))
    with pytest.raises(ValueError, match="a forward wrote nothing where it must"):
        generate(model, [1, 2, 3], strategy, **LENGTHS)


def test_a_forward_may_write_nothing_where_no_block_with_masks_must_move():
    """Would catch an error for a pipeline whose full block is held to move while the next is free to wait."""

    def patient(s):
        for turn in range(100):
            if not len(s.live):
                return
            s.opened.fill_(3)
            masked = s.masked().any(-1)  # [b, n]
            first = masked & (masked.cumsum(-1) == 1)
            yield s.window(0, 3, None, 0, first if turn % 2 == 0 else ~masked)

    never = Strategy(threshold_rule(2.0), full, patient, eos="fill")
    steps = list(decode(random_model(0), [1, 2, 3], never, **LENGTHS))
    assert not (steps[-1].x == MASK).any() and any(not step.commit.any() for step in steps)


# --- logits of what is masked alone --------------------------------------------------------------------------------------------------


@every_case
def test_who_does_not_look_at_the_steps_gets_the_same_tokens(case):
    """Would catch a rule that reads what is said of written cells and gets no logits of them: only `generate` leaves these out."""
    name, own = case
    settings, prompts = LENGTHS | own | {"temperature": 0.5}, [random_prompt(3, 4), random_prompt(4, 7)]
    canvas = prepare(random_model(5), prompts, name, settings)
    assert same(generate(random_model(5), prompts, name, **settings), finish(canvas, stream(canvas)))


def heads(strategy, **settings) -> tuple[int, int]:
    """Rows of all logits that a decode computes, where its steps are not looked at, and where they are."""
    model, rows = random_model(5), []
    model.ff_out.register_forward_hook(lambda module, given, logits: rows.append(logits[..., 0].numel()))
    generate(model, [1, 2, 3], strategy, **LENGTHS | settings)
    narrow, rows[:] = sum(rows), []
    list(decode(model, [1, 2, 3], strategy, **LENGTHS | settings))
    return narrow, sum(rows)


@pytest.mark.parametrize("strategy", ["llada", "fast-dllm", "streaming", "d2f"])
def test_logits_of_written_cells_are_left_out(strategy):
    """Would catch logits that nothing reads: half of a block's, over its forwards."""
    narrow, all = heads(strategy)
    assert narrow < 0.8 * all


@pytest.mark.parametrize("strategy", ["saber", "editing", "credit", "freedave"])
def test_a_rule_that_reads_written_cells_gets_all(strategy):
    """Negative control: so does every rule that says nothing of itself, as one of one's own."""
    own = {"threshold": 0.9} if strategy == "freedave" else {}
    assert len({*heads(strategy, **own)}) == 1
    rule = lambda scores, candidates, window: scores.confidence >= 0.9
    assert len({*heads(Strategy(rule, full, serial))}) == 1
