"""Learning from preferred and from earned answers: what R2FT and coupled-GRPO promise, with what breaks it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, random_model
from lab import command_line, grpo, r2ft, train
from test_blocks import a_batch

TINY = {"start": str(command_line.TINY), "block": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- R2FT


def test_equal_texts_give_the_logarithm_of_two():
    """Would catch a lost margin, anchor or sign: good == bad gives log 2 and the anchor's share of the plain loss."""
    same = torch.tensor([-3.0, -0.1])
    torch.testing.assert_close(r2ft.preference(same, same, 0.0, 0.1), math.log(2) - 0.1 * same)


def test_the_gradient_raises_good_over_bad():
    """Would catch texts that are swapped. At equal probabilities both have the same force, against each other; the anchor is good's alone."""
    good, bad = torch.tensor(-1.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    r2ft.preference(good, bad, 0.0, 0.0).backward()
    assert good.grad == -0.5 and bad.grad == 0.5
    r2ft.preference(good, bad, 0.0, 0.1).backward()
    assert good.grad == pytest.approx(-1.1) and bad.grad == 1


@given(st.integers(0, 999))
def test_what_is_rejected_repeats_its_edge_and_changes_nothing_else(seed):
    """Would catch masks behind the answer, a place without masks, and a phrase that is not from the edge."""
    own, A = torch.tensor([1, 2, 5, 20]), 24
    answer = torch.arange(4 * A).view(4, A)
    masked, bad = r2ft.repeated(answer, own, generator(seed))
    assert torch.equal(bad[~masked], answer[~masked])
    for row, length in enumerate(own.tolist()):
        assert not masked[row, length:].any() and masked[row].any() == (length > 1)
        text = bad[row, :length].tolist()
        assert length < 2 or r2ft.repeats(text) and not r2ft.repeats(answer[row].tolist())


def test_repeats_by_hand():
    """Would catch a phrase that is missed at either end, and one that only returns later."""
    assert r2ft.repeats([1, 1, 2]) and r2ft.repeats([3, 1, 2, 1, 2]) and not r2ft.repeats([1, 2, 3, 1, 4])


# --- coupled-GRPO


@given(st.integers(0, 999))
def test_each_token_is_scored_by_exactly_one_of_the_two_complementary_passes(seed):
    """Would catch masks that overlap or leave a gap: a token's likelihood depends on the reading that masks it, at its own weight, never
    on the other. Negative control: with one mask alone there are tokens that no pair scores."""
    rng = generator(seed)
    one, ratio = torch.rand(2, 9, generator=rng) < 0.5, torch.tensor([[0.2], [0.7]])
    of = [torch.zeros(2, 9, requires_grad=True) for _ in range(3)]
    grpo.coupled(*of, one, ratio).sum().backward()
    everywhere, first, second = (each.grad for each in of)
    assert (everywhere == 0.5).all() and torch.equal(first > 0, one) and torch.equal(second > 0, ~one)
    torch.testing.assert_close(first + second, torch.where(one, 0.5 / ratio, 0.5 / (1 - ratio)))
    assert one.all() or (first == 0).any()


def test_the_readings_are_of_complementary_masks(monkeypatch):
    """Would catch a job that draws the second mask anew: what it reads is all masks, a mask, and the rest."""
    seen, s = [], grpo.Settings(**TINY, group=2, gen_length=8)
    model = random_model(0)
    monkeypatch.setattr(grpo.Settings, "sample", lambda *_: sampled([1, 0, 0, 1]))
    read = grpo.Settings.read
    monkeypatch.setattr(grpo.Settings, "read", lambda self, model, batch, masks: seen.extend(masks) or read(self, model, batch, masks))
    s.loss(0, model, a_batch(), generator())
    assert seen[0].all() and torch.equal(seen[1], ~seen[2]) and 0 < seen[1].sum() < seen[1].numel()


def sampled(earned: list[int]) -> tuple:
    answers = torch.tensor([[7, 8, 9, EOS, EOS, EOS, EOS, EOS]] * 2 + [[9, 8, 7, 6, 5, EOS, EOS, EOS]] * 2)
    return answers, torch.tensor([3, 3, 5, 5]), torch.tensor(earned).float().view(-1, 2)


def gradient(monkeypatch, earned: list[int]) -> float:
    model = random_model(0).requires_grad_()
    monkeypatch.setattr(grpo.Settings, "sample", lambda *_: sampled(earned))
    s = grpo.Settings(**TINY, group=2, gen_length=8)
    loss, counts = s.loss(0, model, a_batch(), generator())
    loss.backward()
    assert counts.tolist() == [4, sum(earned)]
    return max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("earned", [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
def test_equal_rewards_teach_nothing(monkeypatch, earned):
    """Would catch rewards compared over problems, or with nothing: no group differs in itself, and every gradient is 0."""
    assert gradient(monkeypatch, earned) == 0


def test_unequal_rewards_teach(monkeypatch):
    """Negative control for the test above: the answers of a group are read under different masks, so even equal ones leave a gradient."""
    assert gradient(monkeypatch, [1, 0, 0, 0]) > 0


@given(st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_advantages_sum_to_zero_in_a_group(earned):
    """Would catch a mean over all groups. Negative control: rewards themselves do not."""
    worth = grpo.advantages(torch.tensor(earned).float().view(2, 3))
    torch.testing.assert_close(worth.sum(1), torch.zeros(2), atol=1e-4, rtol=0)
    for own, group in zip(worth, torch.tensor(earned).view(2, 3)):
        assert torch.equal(own == 0, group == group.float().mean()) or own.abs().max() < 1e-3


def test_a_step_makes_the_better_answer_likelier(monkeypatch):
    """Would catch a sign: after a step along the gradient what earned is likelier, what did not is less."""
    model, s = random_model(1).requires_grad_(), grpo.Settings(**TINY, group=2, gen_length=8)
    answers = torch.tensor([[7, 8, 9, EOS, EOS, EOS, EOS, EOS], [9, 5, 7, EOS, EOS, EOS, EOS, EOS]])
    batch = train.Batch(*(part[:1] for part in (a_batch().prompt, a_batch().start, a_batch().answer, a_batch().weight)))
    monkeypatch.setattr(grpo.Settings, "sample", lambda *_: (answers, torch.tensor([3, 3]), torch.tensor([[1.0, 0.0]])))

    def likelihoods() -> torch.Tensor:
        both = train.Batch(batch.prompt.expand(2, -1), batch.start.expand(2), answers, torch.ones(2, 8))
        (seen,) = s.read(model, both, [torch.ones(2, 8, dtype=torch.bool)])
        return seen.gather(-1, answers[..., None])[..., 0][:, :4].sum(1)

    before = likelihoods()
    s.loss(0, model, batch, generator())[0].backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * (p.grad if p.grad is not None else 0)
    after = likelihoods()
    assert after[0] - before[0] > 0 and after[0] - before[0] > after[1] - before[1]


def test_sampled_answers_are_the_decoders(monkeypatch):
    """Would catch rewards or lengths that belong to other rows: each answer ends where its length says, and differs from those of its group."""
    s = grpo.Settings(**TINY, group=3, gen_length=8)
    answers, length, earned = s.sample(random_model(3), a_batch(), generator())
    assert answers.shape == (6, 8) and earned.shape == (2, 3) and not earned.any()
    for row, n in zip(answers, length.tolist()):
        assert (row[n:] == EOS).all() and (row[:n] != EOS).all()
    assert len({tuple(row.tolist()) for row in answers[:3]}) > 1


# --- both


@pytest.mark.parametrize("kind, flags", [("r2ft", ["--batch=2"]), ("grpo", ["--batch=1", "--group=2", "--gen-length=8"])])
def test_they_are_jobs_of_lab_train(kind, flags, tmp_path, capsys):
    """Would catch a job that the trainer cannot run, resume or save, and one that writes over weights unasked."""
    common = [kind, *flags, f"--start={command_line.TINY}", "--steps=2", f"--run={tmp_path / 'run'}"]
    train.main([*common, f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "model.safetensors").exists()
    train.main([*common, f"--out={tmp_path / 'other'}"])  # all of its steps are done: it is only saved
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train.main([kind, *flags, f"--start={command_line.TINY}", f"--run={tmp_path / 'new'}", f"--out={command_line.TINY}"])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1 and "holds weights" in err


@pytest.mark.parametrize("flag, valid", [("--temperature=0", "more than 0"), ("--gen-length=9", "a multiple of block, 8")])
def test_what_cannot_be_sampled_is_refused(flag, valid, capsys):
    """Would catch groups of equal answers, and a traceback from the decoder in the first step."""
    with pytest.raises(SystemExit) as exit:
        train.main(["grpo", flag, f"--start={command_line.TINY}"])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1 and valid in err
