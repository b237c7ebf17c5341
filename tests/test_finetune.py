"""Second trainings of a finished model: dLLM-Var's ends, d3LLM's trajectories, RCD's mixed masks, each with what breaks it."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import load_weights
from conftest import EOS, MASK, random_model, random_prompt
from dllm import decode, prepare, stream
from lab import blocks, command_line, rcd, train, trajectory
from lab.train import Batch, diffusion_loss
from strategies.blocks import blocks_of, in_blocks
from strategies.rcd import residual
from test_blocks import a_batch

TINY = {"start": str(command_line.TINY)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Uniform(torch.nn.Module):
    """Shows what it is given, and knows nothing."""

    def __init__(self):
        super().__init__()
        self.config, self.shown = random_model(0).config, []

    def forward(self, ids, at, start=None):
        self.shown.append(ids)
        return torch.zeros(len(ids), ids.shape[1], 40)[:, at.rows]


# --- dLLM-Var


@given(st.integers(0, 999), st.booleans())
def test_every_end_is_masked_and_predicted_in_every_draw(seed, as_decoded):
    """Would catch an EOS in sight, one that is masked and not scored, and one that is weighed by the ratio of the others: under a
    uniform model all ends together cost their weight, whatever is drawn."""
    model, batch = Uniform(), a_batch()
    ends = batch.answer == EOS
    only = Batch(batch.prompt, batch.start, batch.answer, batch.weight * ends)
    loss, _ = diffusion_loss(model, only, 0.1, as_decoded, generator(seed), eos_masked=True)
    assert (model.shown[0][:, 6:][ends] == MASK).all() and (model.shown[0][:, :6] != MASK).all()
    assert loss.item() == pytest.approx((only.weight.sum() * math.log(40)).item(), rel=1e-5)


def test_without_it_ends_are_in_sight():
    """Negative control for the test above: masked at a ratio, and scored where they are masked."""
    model, batch = Uniform(), a_batch()
    ends, sights = batch.answer == EOS, 0
    for seed in range(20):
        diffusion_loss(model, batch, 0.1, False, generator(seed))
        sights += bool((model.shown[-1][:, 6:][ends] == EOS).any())
    assert sights > 15


# --- d3LLM


def taught(seed: int, A: int = 12, block: int = 4, **changes):
    """A job, a teacher, a batch whose answers are what the teacher writes, and the canvases of its decodes, [forwards, B, A]."""
    s = trajectory.Settings(**TINY, **{"block": block, "gen_length": A, "steps": 10} | changes)
    teacher, batch = random_model(seed), a_batch(A)
    prompts = [row[start:].tolist() for row, start in zip(batch.prompt, batch.start.tolist())]
    own = {"threshold": None, "eos": "stop", "gen_length": A, "block_length": block}
    states = [torch.full((2, A), MASK), *(step.x[:, -A:].clone() for step in decode(teacher, prompts, "fast-dllm", **own))]
    return s, teacher, Batch(batch.prompt, batch.start, states[-1], torch.ones(2, A)), torch.stack(states)


def shown(s, teacher, batch, seed: int, step: int = 0) -> list[torch.Tensor]:
    """The canvases that the student is shown in a step, [B, A] each."""
    student = Uniform()
    both = torch.nn.ModuleDict({"student": student, "teacher": teacher})
    s.loss(step, both, batch, generator(seed))
    return [ids[:, 6:] for ids in student.shown]


@given(st.integers(0, 11), st.integers(0, 99), st.integers(0, 9))
def test_the_student_sees_canvases_that_the_teacher_had(seed, draw, step):
    """Would catch what was written first in place of last, a block that is not the open one, and text behind it."""
    s, teacher, batch, states = taught(seed)
    first, _ = shown(s, teacher, batch, draw, step)
    for row in range(2):
        assert (states[:, row] == first[row]).all(-1).any()


def test_random_masks_are_of_no_decode():
    """Negative control for the test above: as many masks in the same block, but anywhere."""
    met = []
    for seed in range(12):
        s, teacher, batch, states = taught(seed)
        first, _ = shown(s, teacher, batch, seed)
        masks = (first == MASK).sum(-1)
        other, _ = shown(trajectory.Settings(**{**vars(s), "shuffled": True}), teacher, batch, seed)
        assert (other == MASK).sum(-1).equal(masks)
        met += [(states[:, row] == other[row]).all(-1).any().item() for row in range(2)]
    assert sum(met) < len(met) / 2


@given(st.integers(0, 11), st.integers(0, 99), st.booleans())
def test_the_second_view_masks_the_rest_of_the_block(seed, draw, shuffled):
    """Would catch a token of the open block that is in sight twice, or never."""
    s, teacher, batch, _ = taught(seed, shuffled=shuffled)
    one, two = (view == MASK for view in shown(s, teacher, batch, draw))
    behind, opened = one & two, one ^ two
    for row in range(2):
        place = opened[row].nonzero()[:, 0].tolist()
        assert place == list(range(place[0], place[0] + 4)) and place[0] % 4 == 0
        assert behind[row].tolist() == [at > place[-1] for at in range(12)]


def test_masks_grow_to_their_largest_share():
    """Would catch a ramp that never ends, or begins at its end: of blocks of 4 at most 0.8, three tokens, and in the first step any."""
    s, teacher, batch, _ = taught(0)
    counts = lambda step: {
        int((one ^ (one & two)).sum()) for draw in range(20) for one, two in [[v[:1] == MASK for v in shown(s, teacher, batch, draw, step)]]
    }
    assert counts(0) == {1, 2, 3} and counts(9) == {2, 3}


def test_the_latest_by_hand():
    """Would catch a rounding up, tokens outside, and the first in place of the last."""
    when = torch.tensor([[9, 1, 4, 2, 3, 9]])
    inside = torch.tensor([[False, True, True, True, True, False]])
    of = lambda share: trajectory.latest(when, inside, torch.tensor([[share]])).nonzero()[:, 1].tolist()
    assert [of(share) for share in (0.0, 0.49, 0.5, 0.8, 1.0)] == [[2], [2], [2, 4], [2, 3, 4], [1, 2, 3, 4]]


def test_wrong_answers_of_the_teacher_teach_nothing():
    """Would catch labels that the teacher got wrong. Where one of two is wrong, the loss is that of the other."""
    s, teacher, batch, _ = taught(1)
    losses = []
    for wrong in ([], [0], [0, 1]):
        answer = batch.answer.clone()
        answer[wrong, 1] += 1
        both = torch.nn.ModuleDict({"student": Uniform(), "teacher": teacher})
        loss, counts = s.loss(0, both, Batch(batch.prompt, batch.start, answer, batch.weight), generator())
        losses.append(loss.item())
        assert counts[0] == 4 * (2 - len(wrong))
    assert losses[0] > losses[1] > losses[2] == 0


def test_what_is_right_is_to_be_surer():
    """Would catch an entropy of what is wrong, or one without its temperature: at half of it a distribution is its square."""
    p = torch.tensor([0.5, 0.25, 0.25])
    square = p**2 / (p**2).sum()
    torch.testing.assert_close(trajectory.entropy(p.log(), 0.5), -(square * square.log()).sum())
    s, teacher, batch, _ = taught(2)

    def loss(student, certain: float) -> float:
        job, both = trajectory.Settings(**{**vars(s), "certain": certain}), torch.nn.ModuleDict({"student": student, "teacher": teacher})
        return sum(job.loss(0, both, batch, generator(draw))[0].item() for draw in range(10))

    assert loss(teacher, 2.0) > loss(teacher, 1.0) > loss(teacher, 0.0)
    assert loss(Uniform(), 2.0) == loss(Uniform(), 0.0)  # negative control: nothing is right


def test_the_entropy_of_what_is_certain_has_a_gradient():
    """Would catch a NaN where a probability is 0 in float32: the surer the student, the likelier, and then all of the training stops."""
    logits = torch.tensor([[0.0, -60, 3, -200]], requires_grad=True)
    trajectory.entropy(logits, 0.5).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.any()


def test_an_answer_that_does_not_fit_is_not_learned_from():
    """Would catch the beginning of an answer that is learned from as if it ended with the canvas."""
    s, teacher, batch, _ = taught(1)
    longer = F.pad(batch.answer.masked_fill(batch.answer == EOS, 3), (0, 4), value=3)  # goes on behind a canvas of 12
    for answer, learned in ((batch.answer, 2), (longer, 0)):
        told, _ = s.decoded(teacher, Batch(batch.prompt, batch.start, answer, torch.ones(answer.shape)))
        assert (told.weight > 0).any(1).sum() == learned


# --- RCD's second stage


@given(st.integers(0, 99), st.sampled_from(["block", "causal"]), st.sampled_from([0, 1]))
def test_what_training_mixes_in_is_what_decoding_expects(seed, context, shift):
    """Would catch a residual of other rows than the tokens', of finished text, or of a mask's neighbour: each state of a decode is a
    noisy copy of its answer, and what is mixed into it is made of that decode's logits."""
    model, prompt, common = random_model(seed), random_prompt(seed, 5), {"gen_length": 12, "eos": "suppress"}
    strategy = in_blocks(blocks_of(context), 0.5, shift=shift, block_length=4)
    steps = [(step.window.start - 5, step.x.clone(), step) for step in stream(prepare(model, prompt, strategy, common))]
    final, E, mixed = steps[-1][1][0, 5:], model.wte.weight, rcd.Mixed(model, model, 4)
    for first, x, step in steps:
        state = x[0, 5:].masked_fill(torch.arange(12) >= first + 4, MASK)
        state[first : first + 4][step.commit[0]] = MASK
        ids = torch.cat((torch.tensor(prompt), final, state))[None]
        added = mixed.added(ids, blocks.streams(5, 12, 4, context, shift, 1), None)[0]
        logits, masked = step.logits[0].clone(), state[first : first + 4] == MASK
        logits[:, MASK] = -torch.inf
        if not masked.all():
            theirs = model(ids, blocks.streams(5, 12, 4, context, shift, 1))[0, 12:][first : first + 4]
            theirs[:, MASK] = -torch.inf
            expected = residual(theirs, E, E[MASK])
            torch.testing.assert_close(added[17 + first : 21 + first][masked], expected[masked], rtol=1e-3, atol=1e-3)
            theirs[:, EOS] = -torch.inf  # which that decode suppresses
            torch.testing.assert_close(theirs, logits, rtol=1e-3, atol=1e-3)
        assert masked.all() == (not added.any())
        added[17 + first : 21 + first][masked] = 0
        assert not added.any()


def test_the_mixture_teaches_the_target_and_not_the_reference():
    """Would catch a reference that learns, and embeddings of the reference: the gradient reaches the target's own."""
    target, reference = random_model(0).requires_grad_(), random_model(1)
    mixed = rcd.Mixed(target, reference, 4)
    ids = torch.tensor([random_prompt(0, 5 + 8) + [MASK, 7, MASK, MASK, MASK, MASK, MASK, MASK]])
    added = mixed.added(ids, blocks.streams(5, 8, 4, "causal", 1, 1), None)
    added[..., 0].sum().backward()
    grads = {name: p.grad is not None and bool(p.grad.any()) for name, p in mixed.named_parameters()}
    assert [name for name in grads if grads[name]] == ["target.wte.weight"]
    assert added[0].any(-1).nonzero()[:, 0].tolist() == [13, 15, 16]  # of the block that has begun, its masks


def test_without_a_residual_it_is_the_control(saved, monkeypatch):
    """Would catch a second stage that differs in more than what is mixed in. Negative control: with it the loss is another."""
    s = {"start": str(saved), "adapter": None, "block": 4, "steps": 10}
    losses = []
    for job, nothing in ((blocks.Settings(rank=0, growing=0.0, **s), False), (rcd.Settings(**s), True), (rcd.Settings(**s), False)):
        with monkeypatch.context() as patch:
            if nothing:
                patch.setattr(rcd, "residual", lambda told, table, mask: torch.zeros(*told.shape[:2], table.shape[1]))
            losses.append(job.loss(0, job.begin()[0], a_batch(), generator())[0].item())
    assert losses[0] == losses[1] != losses[2]


# --- the jobs


@pytest.mark.parametrize(
    "kind, flags, own",
    [
        ("finetune", ["--eos-masked"], {"eos_masked": True}),
        ("trajectory", ["--block=8", "--gen-length=32"], {"block": 8, "gen_length": 32}),
        ("rcd", [], {}),
    ],
    ids=["finetune", "trajectory", "rcd"],
)
def test_they_are_jobs_of_lab_train_that_go_on_where_they_were(kind, flags, own, tmp_path, capsys):
    """Would catch a job that the trainer cannot run, resume or save, one that keeps or trains its frozen half, and one that writes over
    weights unasked."""
    common = [kind, *flags, "--batch=4", "--save-every=1", "--steps=2"]
    train.main([*common, f"--run={tmp_path / 'whole'}", f"--out={tmp_path / 'out'}"])
    file = tmp_path / "whole" / "checkpoint.safetensors"
    names = list(load_weights.read_headers([file]))
    assert names and not any("teacher" in name or "reference" in name for name in names)
    settings = {"batch": 4, "save_every": 1, "steps": 2, "run": str(tmp_path / "killed"), "out": str(tmp_path / "again")}
    s = importlib.import_module(f"lab.{kind}").Settings(**settings, **own)
    job, opts, first = train.begin(s)
    train.train_step(s, first, 0, job, opts)
    train.save_checkpoint(s, 1, job, opts)
    train.main([*common, f"--run={tmp_path / 'killed'}", f"--out={tmp_path / 'again'}"])
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert one == two
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train.main([*common, f"--run={tmp_path / 'new'}", "--out=weights/tiny"])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1 and "holds weights" in err


@pytest.mark.parametrize(
    "flags, valid",
    [
        (["trajectory", "--gen-length=40"], "a multiple of block, 32"),
        (["trajectory", "--gen-length=1000000", "--block=1000000"], "between 1 and 1024"),
        (["rcd", "--block=1000000"], "between 1 and 1024"),
        (["trajectory", "--most=0"], "more than 0"),
        (["finetune", "--least=0"], "more than 0"),
        (["rcd", "--growing=0.5"], "blocks are what they were before"),
        (["rcd", "--rank=4"], "0 beside an adapter"),
        (["blocks", "--adapter=weights/tiny-nbdiff"], "0 beside an adapter"),
        (["rcd", "--adapter=weights/nowhere"], "weights/nowhere"),
        (["rcd", "--start=weights/tiny"], "is of weights/tiny-ar: give another, or none"),
        (["rcd", "--adapter=weights/tiny"], "adapter_config.json is missing"),
        (["finetune", "--start={saved}"], "a model of this program's tokens"),
        (["trajectory", "--start={saved}"], "a model of this program's tokens"),
        (["d2f", "--teacher={saved}"], "a model of this program's tokens"),
        (["blocks", "--start={saved}"], "a model of this program's tokens"),
        (["finetune", "--block=7"], "unrecognized arguments: --block=7"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, valid, saved, capsys, tmp_path):
    """Would catch a traceback in the first step, work that is done before, folders that are left behind, and a setting that does nothing."""
    flags = [flag.format(saved=saved) for flag in flags]
    with pytest.raises(SystemExit) as exit:
        train.main([*flags, f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1 and valid in err and not list(tmp_path.iterdir())
