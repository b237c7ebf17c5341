"""The training recipe: objectives, data, checkpoints and resuming."""

import json
import math
import runpy
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model
from lab import train
from lab.tasks import problems
from lab.tokenizer import build, chat
from lab.train import Batch, Settings, collate, diffusion_loss, draw_masks, score, two_stream_loss, two_stream_mask

SMALL = Settings(out="", run="", steps=8, batch=4, width=8, layers=1, heads=1, ffn=8, warmup=2, save_every=1, processes=1, compile=False)
MASK, EOS = 39, 38  # of conftest's random models


def small(tmp_path: Path, **changes) -> Settings:
    return replace(SMALL, out=str(tmp_path / "out"), run=str(tmp_path / "run"), **changes)


def batch(B: int = 4, P: int = 5, A: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(1)
    draw = lambda length: torch.randint(0, EOS, (B, length), generator=generator)
    return Batch(draw(P), torch.zeros(B, dtype=torch.int64), draw(A), torch.full((B, A), 1 / A))


class Uniform(torch.nn.Module):
    """A model that gives every one of 4 tokens the same logit, and remembers what it was shown."""

    config = random_model(0).config

    def forward(self, ids, at, start=None):
        self.ids = ids
        return torch.zeros(*ids[:, at.rows].shape, 40)


# ---- Objectives


def test_the_loss_of_a_case_worked_by_hand():
    """A loss that is divided by the masked tokens instead of the answer's length, that forgets the masking ratio, or that is about the tail."""
    quarter, half = math.log(1 / 4), math.log(1 / 2)  # logits of probabilities 1/4, 1/4, 1/2
    logits = torch.tensor([[[quarter, quarter, half]] * 4] * 2)  # [2, 4, 3]
    data = collate([([1], [0, 2, 1, 2]), ([1], [2, 2])], 4, 2)  # the second answer has two tokens and a tail of two
    masked = torch.tensor([[True, True, False, False], [False, False, False, True]])
    ratio = torch.tensor([[0.5] * 4, [0.25] * 4])
    # first:  (ln 4 + ln 2) / 0.5 / 4 tokens = 1.5 ln 2;  second:  half a token of the tail, ln 2 / 0.25 / 2 / 2 tokens = ln 2
    loss, counts = score(logits, data, masked, ratio)
    assert loss.item() == pytest.approx(2.5 * math.log(2)) and counts.tolist() == [3, 2]


def test_the_objective_is_unbiased():
    """A ratio that masks and a ratio that weighs which are not the same: under a uniform model each token's expected loss is ln V."""
    rng, model = torch.Generator().manual_seed(0), Uniform()
    losses = [diffusion_loss(model, batch(), 0.15, False, rng)[0].item() / 4 for _ in range(400)]
    assert sum(losses) / 400 == pytest.approx(math.log(40), rel=0.03)


@given(st.booleans(), st.integers(0, 99))
def test_the_prompt_is_never_masked_and_clean_tokens_are_unchanged(as_decoded, seed):
    """Masking over the whole canvas, as in pre-training; a mask that is drawn for another layout."""
    model, data = Uniform(), batch()
    diffusion_loss(model, data, 0.15, as_decoded, torch.Generator().manual_seed(seed))
    prompt, answer = model.ids[:, :5], model.ids[:, 5:]
    assert torch.equal(prompt, data.prompt)
    assert torch.equal(answer.where(answer != MASK, data.answer), data.answer) and (answer == MASK).any()


def test_the_end_of_a_long_answer_counts_an_eighth():
    """A list whose end is one token among sixty: the model goes on counting (it did)."""
    long, short = collate([([1], list(range(20))), ([1], [5, 6])], 20, 9).weight
    assert long.tolist() == pytest.approx([1 / 20] * 18 + [1 / 8] * 2)
    assert short.tolist() == pytest.approx([1 / 2] * 2 + [1 / 18 / 2] * 18)


def test_in_half_of_the_decoded_examples_no_eos_is_in_sight():
    """An EOS in sight tells where the answer ends: with one in nearly every example, the model never learns to find out (it did not)."""
    data, sights = batch(), {True: 0, False: 0}
    data.answer[:, -4:] = EOS
    for as_decoded in sights:
        model, rng = Uniform(), torch.Generator().manual_seed(0)
        for _ in range(100):
            diffusion_loss(model, data, 0.15, as_decoded, rng)
            sights[as_decoded] += (model.ids[:, 5:] == EOS).any(-1).sum().item() / len(data.answer)
    assert sights[False] > 70 and sights[True] < 30  # of 100; 43 if all could be seen where the masks leave them


@given(st.integers(1, 70), st.integers(0, 99))
def test_masks_as_decoding_sees_them(A, seed):
    """Scoring a token that decoding cannot commit yet, or one that is not a mask; leaving a later block clean."""
    ratio, hidden, scored = draw_masks(8, A, 0.15, True, torch.Generator().manual_seed(seed))
    assert not (scored & ~hidden).any() and 0.15 <= ratio.min() and ratio.max() <= 1
    for row in (scored != hidden).any(-1).nonzero():  # there are masks which are not scored: this example is masked by blocks
        behind = (hidden & ~scored)[row[0]].nonzero().min()
        assert hidden[row[0], behind:].all() and not scored[row[0], behind:].any() and behind % 8 == 0


def test_half_of_the_examples_are_masked_from_left_to_right():
    """Random masks alone: how a list goes on and where it ends is then seldom asked with nothing behind it."""
    _, hidden, _ = draw_masks(1000, 64, 0.15, True, torch.Generator().manual_seed(0))
    behind = (hidden.cumsum(-1) > 0) == hidden  # everything behind the first mask is one
    share = behind.all(-1).float().mean()
    assert 0.45 < share < 0.6


def test_masking_ratios_are_spread_over_the_batch():
    """Independent draws: a batch of small ratios has many times the gradient of another."""
    ratio = draw_masks(10, 3, 0.0, False, torch.Generator().manual_seed(0))[0][:, 0]
    assert sorted((ratio * 10).long().tolist()) == list(range(10))


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))
def test_the_two_stream_mask_is_its_definition(P, A, block):
    """A noisy token that sees its own clean copy, a clean one that sees the future: the loss would fall and nothing be learned."""
    kind = ["prompt"] * P + ["clean"] * A + ["noisy"] * A
    place = [0] * P + list(range(A)) * 2

    def sees(i, j):
        if kind[i] == "prompt":
            return kind[j] == "prompt"
        if kind[i] == "clean":
            return kind[j] == "prompt" or kind[j] == "clean" and place[j] <= place[i]
        if kind[j] == "noisy":
            return place[j] // block == place[i] // block
        return kind[j] == "prompt" or place[j] // block < place[i] // block

    Q = P + 2 * A
    assert two_stream_mask(P, A, block).tolist() == [[sees(i, j) for j in range(Q)] for i in range(Q)]


@pytest.mark.parametrize("block", [1, 4])
def test_a_noisy_block_is_blind_to_its_own_clean_tokens(block):
    """A leak through positions, rows or a deeper layer, which the mask alone does not show."""
    model, A = random_model(0), 8

    def logits(answer):
        seen = []
        forward = lambda *a, **k: seen.append(model(*a, **k)) or seen[0]
        forward.config = model.config
        data = replace(batch(1), answer=answer, weight=torch.ones(1, A))
        rng = torch.Generator().manual_seed(0)
        two_stream_loss(forward, data, block, 1.0, rng)  # a ratio of 1 masks all
        return seen[0]

    answer = torch.arange(A)[None]
    before = logits(answer)
    changed = answer.clone()
    changed[0, 4:] = 30
    after = logits(changed)
    assert torch.equal(before[:, : 5 if block == 1 else 8], after[:, : 5 if block == 1 else 8])
    assert block != 1 or not torch.allclose(before[:, 5:], after[:, 5:])


# ---- Schedule and data


def test_the_schedule_grows_the_blocks_and_decays_once():
    """A stage that is skipped by rounding, a learning rate that restarts before the polish."""
    s = replace(SMALL, steps=1250, warmup=50, polish=0.2)
    blocks = [s.block_length(step) or math.inf for step in range(1000)]
    assert sorted(set(blocks)) == [1, 2, 4, 8, 16, math.inf] and blocks == sorted(blocks)
    rates = [s.rate(step) for step in range(1250)]
    rates, polish = rates[:1000], rates[1000:]
    assert rates[:50] == sorted(rates[:50]) and rates[49:] == sorted(rates[49:], reverse=True)
    assert polish[0] == pytest.approx(0.3) and polish == sorted(polish, reverse=True) and 0 < polish[-1] < 0.01
    assert max(rates) == 1 and 0 < rates[-1] < 0.01 and rates[blocks.index(math.inf)] > 0.999 > rates[blocks.index(math.inf) + 10]


def test_processes_share_out_the_examples_of_one():
    """Processes that train on the same half, or that drop an example."""
    eos = build().token_to_id("<|endoftext|>")

    def answers(processes):
        s = replace(SMALL, batch=10, processes=processes)
        found = []
        for rank in range(processes):
            for group in train.batches(s, 3, rank):
                for start, prompt, answer in zip(group.start, group.prompt, group.answer):
                    found.append((prompt[start:].tolist(), [t for t in answer.tolist() if t != eos]))
        return sorted(found)

    assert answers(1) == answers(2) == answers(3) and len(answers(1)) == 10


def test_the_polish_asks_for_more_of_what_is_hard():
    """A polish with the problems of the steps before it."""
    s, encode = replace(SMALL, steps=10, batch=16, polish=0.5), lambda text: build().encode(text).ids
    for step, polish in ((4, False), (5, True)):
        prompts = [row[start:].tolist() for group in train.batches(s, step, 0) for start, row in zip(group.start, group.prompt)]
        expected = [encode(chat(p.prompt)) for p in islice(problems(f"train/0/{step}", polish=polish), 16)]
        assert sorted(prompts) == sorted(expected)


def test_answers_end_in_eos_and_tails_come_last():
    """An answer without its EOS teaches the model never to stop; tails from the start waste the training on EOS; without them it fills."""
    s = replace(SMALL, steps=100, batch=16, polish=0.2, tails=0.5)
    eos = build().token_to_id("<|endoftext|>")

    def tails(*steps):
        """The EOS behind the longest answer of each group; the first is the answer's own."""
        groups = [group.answer.tolist() for step in range(*steps) for group in train.batches(s, step, 0)]
        assert all(eos in row and set(row[row.index(eos) :]) == {eos} for rows in groups for row in rows)
        return [min(row.count(eos) for row in rows) for rows in groups]

    assert max(tails(10)) <= 5
    assert max(tails(40, 80)) > 8 > min(tails(40, 80))
    assert min(tails(80, 100)) > 8
    s = replace(s, tails=0.0)  # the twin's
    assert max(tails(40, 100)) <= 5


def test_prompts_are_padded_on_the_left():
    """Padding between a prompt and its answer, or a start that is off by one."""
    got = collate([([1, 2, 3], [4, 9]), ([5], [6, 7, 9])], 4, 9)
    assert (
        got.prompt.tolist() == [[1, 2, 3], [9, 9, 5]]
        and got.start.tolist() == [0, 2]
        and got.answer.tolist() == [[4, 9, 9, 9], [6, 7, 9, 9]]
    )


# ---- Checkpoints


def flags(s: Settings) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in vars(s).items() if name != "compile"] + ["--no-compile"]


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """State that is not saved (momentum, step, random numbers): the second half would differ from an uninterrupted run."""
    whole, killed = small(tmp_path / "whole", save_every=2), small(tmp_path / "killed", save_every=2)
    train.train(whole)
    step = train.train_step

    def kill(s, number, *rest):
        if number == 5:
            raise KeyboardInterrupt
        return step(s, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "train_step", kill)
        train.train(killed)
    assert train.read_checkpoint(killed)[0] == 4
    torch.rand(5)  # whatever else draws from PyTorch's own generator
    train.train(killed)
    expected, resumed = (train.read_checkpoint(s)[1] for s in (whole, killed))
    assert resumed.keys() == expected.keys() and sum(not name.startswith("model/") for name in expected) > 8
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:.lab.train. found in sys.modules")
def test_two_processes_step_along_the_sum_of_their_gradients(tmp_path, monkeypatch):
    """Processes that drift apart, or of which one is not heard; a module that cannot be sent to another; `python -m lab.train` itself."""
    s = small(tmp_path, processes=2, steps=2)
    monkeypatch.setattr(sys, "argv", ["lab.train", *flags(s)])
    runpy.run_module("lab.train", run_name="__main__", alter_sys=True)
    (module, opts), alone = s.begin(), s.begin()[0]
    for step in range(s.steps):  # the plain version
        for rank in range(2):
            rng = torch.Generator().manual_seed((s.seed * 1_000_003 + step) * 64 + rank)
            for data in train.batches(s, step, rank):
                with torch.autocast("cpu", torch.bfloat16):
                    (s.loss(step, module, data, rng)[0] / s.batch).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for opt in opts:
            opt.param_groups[0]["lr"] = opt.defaults["lr"] * s.rate(step)
            opt.step()
            opt.zero_grad()
    moved, off = 0.0, 0.0
    tensors = {key.removeprefix("model/"): value for key, value in train.read_checkpoint(s)[1].items() if key.startswith("model/")}
    for name, value in tensors.items():
        moved += (value - alone.get_parameter(name)).square().sum().item()
        off += (value - module.get_parameter(name)).square().sum().item()
    assert off < 0.01 * moved  # they add in another order; with one process's gradient alone it is half


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """Writing in place: a kill at the wrong moment would lose the whole run."""
    s = small(tmp_path)
    module, opts = s.begin()
    train.save_checkpoint(s, 3, module, opts)

    def crash(tensors, file, notes):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        train.save_checkpoint(s, 4, module, opts)
    assert train.read_checkpoint(s)[0] == 3


def test_a_damaged_checkpoint_is_one_line(tmp_path, capsys):
    """A traceback of the file's library, or a run that starts over and writes over what might be saved."""
    s = small(tmp_path)
    Path(s.run).mkdir()
    Path(s.run, "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(SystemExit) as exit:
        train.main(flags(s))
    assert exit.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_another_recipe_does_not_resume(tmp_path, capsys):
    """A run that silently goes on with half of its steps under other settings."""
    s = small(tmp_path)
    train.save_checkpoint(s, 3, *s.begin())
    with pytest.raises(SystemExit) as exit:
        train.main(flags(replace(s, least=0.3)))
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "least" in error and "0.3" in error and "0.15" in error


def test_a_finished_run_leaves_a_model_that_decodes(tmp_path, capsys):
    """A model folder that misses a file, or holds another vocabulary than the tokenizer."""
    from dllm import generate
    from load_weights import load_model, load_tokenizer

    s = small(tmp_path, steps=2)
    train.main(flags(s))
    model, tokenizer = load_model(s.out), load_tokenizer(s.out)
    assert tokenizer.encoder.get_vocab_size() <= model.config.vocab_size
    assert (
        model.config.mask_token_id == tokenizer.encode("<|mdm_mask|>")[0]
        and model.config.eos_token_id == tokenizer.encode("<|endoftext|>")[0]
    )
    out = generate(model, tokenizer.encode_chat([{"role": "user", "content": "3 + 4"}]), gen_length=8, block_length=8)
    assert not (out.tokens == model.config.mask_token_id).any()
    assert json.loads(Path(s.out, "config.json").read_text())["model_type"] == "llada"


@pytest.mark.parametrize("flag", ["--steps=none", "--nonsense=1", "--batch=0", "--heads=5", "--least=0"])
def test_bad_settings_are_one_line(flag, capsys):
    """A traceback, or a run that fails at its first step."""
    with pytest.raises(SystemExit) as exit:
        train.main([flag, "--processes=1"])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1 and flag[2:].split("=")[0] in lines[0]
