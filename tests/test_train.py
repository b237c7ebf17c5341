"""The training recipe: objectives, data, checkpoints and resuming."""

import json
import math
import os
import runpy
import signal
import sys
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import full_disk, random_model
from lab import train
from lab.files import locked
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
    given = [f"--{name.replace('_', '-')}={value}" for name, value in vars(s).items() if type(value) is not bool]
    return given + ["--no-compile"] + ["--replace"] * s.replace


def refused(arguments: list[str], capsys, code: int = 2) -> str:
    """The one line that a command ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train.main(arguments)
    error = capsys.readouterr().err.split("\r")[-1]
    last = error.splitlines()[-1]
    assert exit.value.code == code and last.startswith("lab.train") and "Traceback" not in error
    return last


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()} if Path(folder).exists() else {}


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

    for error, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), ValueError)):

        def crash(tensors, file, notes):
            Path(file).write_bytes(b"half")
            raise error

        monkeypatch.setattr(train, "write_tensors", crash)
        with pytest.raises(raised):
            train.save_checkpoint(s, 4, module, opts)
        assert train.read_checkpoint(s)[0] == 3 and [file.name for file in Path(s.run).iterdir()] == [train.CHECKPOINT]


def damaged(tensors: dict, notes: dict) -> dict:
    """What a checkpoint file may hold instead of tensors and notes: {words of the refusal: (tensors, notes)}."""
    name, momentum = "model/wte.weight", next(name for name in tensors if name.startswith("0/"))
    recipe = json.loads(notes["recipe"])
    without = lambda key, of: {name: value for name, value in of.items() if name != key}
    no_checkpoint = [
        {"recipe": notes["recipe"]}, {"step": notes["step"]}, None, {}, notes | {"step": "half"}, notes | {"step": "-1"},
        notes | {"step": "0"}, notes | {"step": "9"}, notes | {"step": "9" * 5000}, notes | {"recipe": "[]"}, notes | {"recipe": "[" * 100_000},
    ]  # fmt: skip
    return [("is no checkpoint of this program", tensors, other) for other in no_checkpoint] + [
        ("least is 0.15, but", tensors, notes | {"recipe": json.dumps(recipe | {"least": "\x1b[2J"})}),
        ("is damaged: 'model/wte.weight' is missing", without(name, tensors), notes),
        ("is damaged: 'model/other' is missing or too much", tensors | {"model/other": torch.ones(2)}, notes),
        ("is missing or too much", without(momentum, tensors) | {momentum + "\x1b": tensors[momentum]}, notes),
        ("is damaged: model/wte.weight is of another shape", tensors | {name: torch.ones(2)}, notes),
        ("is damaged: model/wte.weight is of another shape or type", tensors | {name: tensors[name].double()}, notes),
        ("is damaged: model/wte.weight is not finite", tensors | {name: tensors[name] * math.nan}, notes),
        (f"is damaged: {momentum} is not finite", tensors | {momentum: tensors[momentum] + math.inf}, notes),
    ]


def test_a_damaged_checkpoint_is_one_line(tmp_path, capsys):
    """A traceback of the file's library, a run that starts over and writes over what might be saved, weights trained by half of a state."""
    s = small(tmp_path, steps=2)
    train.main(flags(s))
    file, out = Path(s.run, train.CHECKPOINT), files(s.out)
    with safe_open(file, "pt") as f:
        tensors, notes = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()
    for words, kept, other in damaged(tensors, notes):
        save_file(kept, file, other)
        before = file.read_bytes()
        line = refused(flags(s), capsys)
        assert words in line and line.isprintable() and len(line) < 500
        assert files(s.run) == {train.CHECKPOINT: before} and files(s.out) == out
    file.write_bytes(b"half")
    assert "is no checkpoint of this program" in refused(flags(s), capsys)


def test_what_is_not_finite_is_never_written(tmp_path, capsys, monkeypatch):
    """Hours of training on NaN, and a model of it with exit code 0."""
    assert "adam is 1e+30, expected between 0 and 1" in refused([*flags(small(tmp_path)), "--adam=1e30"], capsys)
    with monkeypatch.context() as patch:
        step, s = train.train_step, small(tmp_path / "loss", steps=4)
        loss = lambda self, step, *rest: tuple(x * (math.nan if step == 2 else 1) for x in diffusion_loss(*rest[:2], 0.15, False, rest[2]))
        patch.setattr(Settings, "loss", loss)
        assert "in step 3 the loss or its gradient is not finite: lower adam" in refused(flags(s), capsys)
        assert files(s.out) == {} and train.read_checkpoint(s)[0] == 2

    def overshoot(s, number, rank, module, opts):
        counts = step(s, number, rank, module, opts)
        if number == 3:
            module.wte.weight.data[0] = math.inf
        return counts

    monkeypatch.setattr(train, "train_step", overshoot)
    s = small(tmp_path / "weight", steps=4)
    assert "after step 4 not all weights are finite" in refused(flags(s), capsys)
    assert files(s.out) == {} and train.read_checkpoint(s)[0] == 3


def test_weights_that_are_there_are_replaced_only_if_that_is_said(tmp_path, capsys):
    """A try of two steps that leaves garbage where the embedded model was (it did); a killed run that cannot write what it has begun."""
    s = small(tmp_path, steps=2)
    for kind in ("train", "ar", "d2f", "filter"):
        default = train.importlib.import_module(f"lab.{kind}").Settings
        assert next(f.default for f in fields(default) if f.name == "out").startswith("runs/")
    train.main(flags(s))
    train.main(flags(s))  # its own
    first, other = files(s.out), replace(s, run=str(tmp_path / "other"), seed=1)
    line = refused(flags(other), capsys)
    assert "holds weights: give another folder, or --replace" in line and files(s.out) == first and not Path(other.run).exists()
    train.main(flags(replace(other, replace=True)))
    assert files(s.out).keys() == first.keys() and files(s.out) != first
    file = tmp_path / "filter.safetensors"
    file.write_text("mine")
    assert "is there: give another file, or --replace" in refused(["filter", f"--out={file}"], capsys) and file.read_text() == "mine"


def test_ctrl_c_is_one_line_and_loses_no_step(tmp_path, capsys, monkeypatch):
    """A traceback, the steps since the last checkpoint lost, or a step that is half done and then done again."""
    s, step = small(tmp_path, save_every=50), train.train_step
    before = signal.getsignal(signal.SIGINT)  # it is ignored where tests run in the background

    def interrupted(s, number, *rest):
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(s, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        line = refused(flags(s), capsys, 130)
    assert line == "lab.train: stopped after step 5; the same command goes on from there" and train.read_checkpoint(s)[0] == 5
    assert signal.getsignal(signal.SIGINT) is before
    train.main(flags(s))
    whole = small(tmp_path / "whole")
    train.main(flags(whole))
    assert files(s.out) == files(whole.out)


def test_the_first_steps_are_kept_soon(tmp_path, monkeypatch):
    """A run that is killed before step 50 and has nothing."""
    s, kept = small(tmp_path, save_every=50), []
    monkeypatch.setattr(train, "save_checkpoint", lambda s, step, *rest: kept.append(step))
    train.train(s)
    assert kept == [1, 2, 4, 8]


def test_two_runs_do_not_share_a_folder(tmp_path, capsys):
    """Two runs that write each other's checkpoints; one that takes, or leaves, what another writes or was killed while writing."""
    s = small(tmp_path, steps=2)
    for folder in (s.run, s.out):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, ".tmp-left-over").write_text("half")
        with locked(folder):
            assert f"{folder} is in use: another run writes to it" in refused(flags(s), capsys)
    train.main(flags(s))
    assert files(s.run).keys() == {train.CHECKPOINT} and ".tmp-left-over" not in files(s.out)


def test_a_full_disk_is_one_line_and_leaves_whole_files(tmp_path, capsys):
    """A traceback of the library that writes, half a checkpoint, a temporary file for each try."""
    s = small(tmp_path, steps=2)
    with full_disk(1000):
        assert f"{s.run}/{train.CHECKPOINT} cannot be written: File too large" in refused(flags(s), capsys)
    assert files(s.run) == files(s.out) == {}
    train.main(flags(s))
    run, out, more = files(s.run), files(s.out), replace(s, out=str(tmp_path / "more"))
    with full_disk(len(out["model.safetensors"]) - 1):
        assert "model.safetensors cannot be written: File too large" in refused(flags(replace(s, replace=True)), capsys)
        assert files(s.out) == out
        assert "cannot be written: File too large" in refused(flags(more), capsys)
    assert files(s.run) == run and files(more.out) == {}


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


@pytest.mark.parametrize(
    "flag",
    [
        "--steps=none",
        "--nonsense=1",
        "--batch=0",
        "--heads=5",
        "--least=0",
        "--adam=nan",
        "--seed=-1",
        "--processes=65",
        "--width=9999999",
        "--batch=99999999999",
    ],
)
def test_bad_settings_are_one_line(flag, capsys):
    """A traceback, or a run that fails at its first step."""
    with pytest.raises(SystemExit) as exit:
        train.main(["--processes=1", flag])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1 and flag[2:].split("=")[0] in lines[0]
