"""D2F's distillation: who may see whom, how much is masked, and an adapter that starts as nothing and ends up in PEFT's layout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import load_weights
from conftest import EOS, random_prompt
from lab import command_line, d2f, train
from lab.train import Batch
from model import Pass
from strategies.d2f import block_mask


def settings(saved, **changes) -> d2f.Settings:
    return d2f.Settings(teacher=str(saved), rank=4, alpha=8.0, **{"block": 4} | changes)


@pytest.fixture
def both(saved) -> torch.nn.ModuleDict:
    return settings(saved).begin()[0]


def a_batch(answer_length: int = 10) -> Batch:
    prompt = torch.tensor([random_prompt(0, 6), [EOS, EOS, *random_prompt(1, 4)]])
    answer = torch.tensor([random_prompt(seed, answer_length) for seed in (2, 3)])
    return Batch(prompt, torch.tensor([0, 2]), answer, torch.full(answer.shape, 1 / answer_length))


def learn(both, s, steps: int = 1) -> list[float]:
    """Train on one batch, and return the losses."""
    optimizer, losses = torch.optim.Adam([p for p in both.parameters() if p.requires_grad], lr=1e-2), []
    for _ in range(steps):
        loss, _ = s.loss(0, both, a_batch(), torch.Generator().manual_seed(0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_an_untrained_adapter_leaves_the_teacher_unchanged(both):
    """Would catch a LoRA that does not start at zero."""
    ids = torch.tensor([random_prompt(0, 12)])
    assert both.student(ids).equal(both.teacher(ids))


def test_only_the_adapter_is_trained(both):
    """Would catch a teacher that moves under its student."""
    trained = [name for name, p in both.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 4 * 2 and all(name.startswith("student.blocks.") and ".lora_" in name for name in trained)


def test_training_brings_the_student_closer_to_the_teacher(saved, both):
    """Would catch a distance with the wrong sign, and gradients that do not reach the adapter."""
    losses = learn(both, settings(saved), steps=30)
    assert losses[-1] < 0.8 * losses[0]


def test_the_loss_by_hand(saved, both):
    """Would catch a distance from student to teacher, a wrong mean, or a weight other than 1 / ratio: one block, a ratio of 1 or a half."""
    batch = a_batch()
    for ratio in (1.0, 0.5):
        s, rng = settings(saved, block=10, least=ratio, most=ratio), torch.Generator().manual_seed(0)
        d2f.mask_ratios(2, 1, ratio, ratio, rng)
        masked = torch.rand(2, 10, generator=rng) < ratio
        ids = torch.cat((batch.prompt, batch.answer.masked_fill(masked, both.student.config.mask_token_id)), 1)
        allowed = torch.ones(16, 16, dtype=torch.bool)
        allowed[:6, 6:] = False  # the prompt does not see the answer
        told = torch.softmax(both.teacher(ids, start=batch.start)[:, 6:].double(), -1)
        said = torch.softmax(both.student(ids, Pass(mask=allowed), start=batch.start)[:, 6:].double(), -1)
        expected = -(told * said.log()).sum(-1)[masked].mean().item() / ratio * 2
        loss, counts = s.loss(0, both, batch, torch.Generator().manual_seed(0))
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert counts.tolist() == [masked.sum(), ((told.argmax(-1) == said.argmax(-1)) & masked).sum()]


def test_a_student_never_looks_ahead(both):
    """Would catch a mask that lets a block see later ones: the pipeline's exact cache would then be wrong."""
    ids = torch.tensor([random_prompt(0, 14)])
    edited = ids.clone()
    edited[0, 10:] += 1
    mask = block_mask(2, 4, 0, 14)
    torch.testing.assert_close(both.student(ids, Pass(mask=mask))[:, :10], both.student(edited, Pass(mask=mask))[:, :10])


@given(st.integers(1, 9), st.floats(0.05, 0.9), st.floats(0, 1), st.integers(0, 99))
def test_masking_ratios_grow_from_block_to_block_within_their_bounds(K, least, share, seed):
    """Would catch a ratio outside the recipe's range, or a later block masked less than an earlier one."""
    most = least + share * (1 - least)
    ratios = d2f.mask_ratios(50, K, least, most, torch.Generator().manual_seed(seed))
    assert ratios.shape == (50, K)
    assert (ratios >= least - 1e-6).all() and (ratios <= most + 1e-5).all()
    assert (ratios.diff(dim=1) >= 0).all()


def test_it_is_a_job_of_lab_train_that_leaves_an_adapter(tmp_path, capsys):
    """Would catch a job that the trainer cannot run, resume or save, and a teacher that is missing only after the work."""
    flags = ["d2f", "--steps=2", "--batch=2", "--processes=1", "--rank=2", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
    train.main([*flags, f"--teacher={command_line.TINY}"])
    first = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    train.main([*flags, f"--teacher={command_line.TINY}"])  # resumes at its end
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == first
    load_weights.load_model(command_line.TINY, adapter=tmp_path / "out", device="cpu")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train.main([*flags, "--teacher=./nowhere"])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1 and "no checkpoint at ./nowhere" in err


def test_the_saved_adapter_is_merged_to_the_student(saved, both, tmp_path):
    """Would catch names, scale or orientation that --adapter reads differently from how they were trained."""
    s = settings(saved, out=str(tmp_path / "adapter"))
    learn(both, s, steps=3)
    s.save(both)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    merged = load_weights.load_model(saved, adapter=tmp_path / "adapter", device="cpu")
    ids = torch.tensor([random_prompt(0, 12)])
    torch.testing.assert_close(merged(ids), both.student(ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(ids), both.teacher(ids), atol=1e-2)
