"""Training for blocks: what is trained is what decoding shows, switch by switch, and an adapter that starts as nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import load_weights
from conftest import EOS, MASK, random_model, random_prompt
from dllm import generate, prepare, stream
from lab import blocks, command_line, train
from lab.train import Batch, two_stream_mask
from strategies.blocks import blocks_of, in_blocks

contexts, shifts = st.sampled_from(["block", "token", "causal"]), st.sampled_from([0, 1])


def settings(saved, **changes) -> blocks.Settings:
    return blocks.Settings(start=str(saved), **{"rank": 3, "block": 4, "steps": 100} | changes)


def a_batch(A: int = 11) -> Batch:
    """Two answers, of A and A - 3 tokens with their EOS, the second behind a padded prompt."""
    prompt = torch.tensor([random_prompt(0, 6), [EOS, EOS, *random_prompt(1, 4)]])
    answer = torch.tensor([[*random_prompt(2, A - 1), EOS], [*random_prompt(3, A - 4), EOS, EOS, EOS, EOS]])
    return Batch(prompt, torch.tensor([0, 2]), answer, torch.full(answer.shape, 1 / A))


# --- one forward of training sees what forwards of decoding see


@given(st.integers(0, 99), contexts, shifts, st.sampled_from([2, 4]))
def test_a_pass_of_training_has_the_logits_of_decoding(seed, context, shift, block):
    """Would catch a mask, a position or a row of training that decoding does not have: every step of a decode is found again in a pass
    over the finished answer and a noisy copy of it in the state of that step."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    strategy = in_blocks(blocks_of(context), 0.5, shift=shift, block_length=block)
    common = {"gen_length": 12, "block_length": block, "eos": "suppress"}
    final, seen = generate(model, prompt, strategy, **common).tokens[0, 5:], []
    for step in stream(prepare(model, prompt, strategy, common)):
        state = step.x[0, 5:].masked_fill(torch.arange(5, 17) >= step.window.end, MASK)
        state[step.window.start - 5 : step.window.end - 5][step.commit[0]] = MASK
        seen.append((step.window.start - 5, state, step.logits[0]))
    ids = torch.stack([torch.cat((torch.tensor(prompt), final, state)) for _, state, _ in seen])
    logits = model(ids, blocks.streams(5, 12, block, context, shift, 1))[:, 12:]
    for row, (start, _, expected) in zip(logits, seen):
        row[:, [MASK, EOS]] = -torch.inf
        torch.testing.assert_close(row[start : start + block], expected, rtol=1e-4, atol=1e-4)


def test_the_row_before_a_block_is_of_the_clean_answer():
    """Negative control for the test above: the row before it in the noisy copy, as in the released code of Fast-dLLM v2, is another."""
    model = random_model(0)
    ids = torch.tensor([random_prompt(1, 5 + 8) + [MASK] * 8])
    at = blocks.streams(5, 8, 4, "block", 1, 1)
    logits = model(ids, at)[0, 8:]
    noisy = model(ids, at._replace(rows=slice(5 + 8 - 1, 5 + 16 - 1)))[0]
    assert torch.allclose(logits[[1, 2, 3, 5, 6, 7]], noisy[[1, 2, 3, 5, 6, 7]], atol=1e-4)
    assert not torch.allclose(logits[4], noisy[4], atol=1e-2)


@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, 2, 4]), contexts)
def test_copies_do_not_see_each_other_and_the_clean_answer_sees_none(P, A, block, context):
    """Would catch a second view that tells the first what it masks, which makes the loss vanish."""
    mask, L = two_stream_mask(P, A, block, context, 2), P + A
    assert not mask[:L, L:].any() and not mask[L : L + A, L + A :].any() and not mask[L + A :, L : L + A].any()
    assert mask[L : L + A, : L + A].equal(torch.cat((mask[L + A :, :L], mask[L + A :, L + A :]), 1))
    assert two_stream_mask(P, A, block).equal(two_stream_mask(P, A, block, "token"))


# --- the loss


def test_with_blocks_of_one_the_noisy_loss_is_that_of_the_next_token(saved):
    """Would catch a row that is off by one: a masked token in a block of its own is the next one, which the start predicts already."""
    s = settings(saved, block=1, next_token=1.0, growing=0.0)
    model, _ = s.begin()
    both, _ = s.loss(0, model, a_batch(), torch.Generator().manual_seed(0))
    alone = settings(saved, block=1, next_token=0.0, growing=0.0)
    noisy, counts = alone.loss(0, model, a_batch(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(both, 2 * noisy)
    assert counts[0] == 11 + 8  # each token once, in one of the two views
    longer, _ = settings(saved, block=4, next_token=0.0, growing=0.0).loss(0, model, a_batch(), torch.Generator().manual_seed(0))
    assert abs(longer - noisy) > 0.1


@given(st.integers(0, 99), contexts, shifts)
def test_two_views_score_each_token_once(seed, context, shift):
    """Would catch a second view that is not the rest of the first, and a token that counts twice: the weights of a batch, all in all."""
    shown, config = [], random_model(0).config

    class Uniform(torch.nn.Module):
        def forward(self, ids, at, start=None):
            shown.append(ids)
            return torch.zeros(len(ids), len(at.rows), 40)

    model = Uniform()
    model.config = config
    s = blocks.Settings(start=str(command_line.TINY), block=4, context=context, shift=shift, next_token=0.0, growing=0.0)
    loss, counts = s.loss(0, model, a_batch(), torch.Generator().manual_seed(seed))
    one, two = (shown[0][:, 6 + 12 + 12 * i :][:, :12] == MASK for i in range(2))
    assert (one ^ two).all() and counts[0] == 12 + 8
    weight = blocks.in_whole_blocks(a_batch(), 4, EOS).weight.sum().item()
    assert loss.item() == pytest.approx(weight * torch.tensor(40.0).log().item(), rel=1e-5)


def test_one_view_is_weighed_by_its_ratio(saved):
    """Would catch a ratio that masks and another that weighs: under a uniform model the expected loss is that of two views."""
    losses, model = [], random_model(0)
    model.ff_out.weight.mul_(0)
    s = settings(saved, views=1, next_token=0.0, growing=0.0, shift=0)
    for seed in range(300):
        losses.append(s.loss(0, model, a_batch(), torch.Generator().manual_seed(seed))[0].item())
    weight = blocks.in_whole_blocks(a_batch(), 4, EOS).weight.sum().item()
    assert sum(losses) / 300 == pytest.approx(weight * torch.tensor(40.0).log().item(), rel=0.05)


def test_blocks_behind_the_end_count_nothing():
    """Would catch a loss that is about EOS which decoding never writes, and an end that is cut off with its block."""
    batch = blocks.in_whole_blocks(a_batch(11), 4, EOS)
    assert batch.answer.shape == (2, 12) and (batch.answer[:, 11] == EOS).all()
    assert (batch.weight[0] > 0).all() and (batch.weight[1, :8] > 0).all() and (batch.weight[1, 8:] == 0).all()
    padded = a_batch(11)
    wide = Batch(padded.prompt, padded.start, torch.nn.functional.pad(padded.answer, (0, 9), value=EOS), None)
    assert blocks.in_whole_blocks(wide, 4, EOS).answer.equal(batch.answer)


def test_the_loss_of_the_next_token_is_that_of_the_twin(saved):
    """Would catch rows of the clean answer that see the noisy one, or stand elsewhere."""
    from lab import ar

    model, _ = settings(saved).begin()
    batch = blocks.in_whole_blocks(a_batch(), 4, EOS)
    rng = lambda: torch.Generator().manual_seed(0)
    with_it = settings(saved, next_token=1.0, growing=0.0).loss(0, model, a_batch(), rng())[0]
    without = settings(saved, next_token=0.0, growing=0.0).loss(0, model, a_batch(), rng())[0]
    twin = ar.Settings().loss(0, model, batch, rng())[0]
    torch.testing.assert_close(with_it - without, twin, rtol=1e-4, atol=1e-4)


def test_blocks_grow_from_two_to_their_length():
    """Would catch a growth that starts at 1, which teaches nothing, or one that never ends."""
    s = blocks.Settings(start=str(command_line.TINY), steps=100, growing=0.6, block=16)
    lengths = [s.length(step) for step in range(100)]
    assert lengths == [2] * 20 + [4] * 20 + [8] * 20 + [16] * 40
    assert {blocks.Settings(start=str(command_line.TINY), growing=0.0, block=n).length(0) for n in (1, 6, 8)} == {1, 6, 8}
    assert [blocks.Settings(start=str(command_line.TINY), steps=4, growing=0.5, block=6).length(i) for i in range(4)] == [2, 4, 6, 6]


# --- the job


def test_what_is_untrained_is_the_model_it_starts_from(saved):
    """Would catch an adapter that does not start at zero."""
    model, _ = settings(saved).begin()
    ids = torch.tensor([random_prompt(0, 12)[:-1] + [MASK]])
    assert model(ids).equal(load_weights.load_model(saved, device="cpu")(ids))


@pytest.mark.parametrize("rank", [0, 3])
def test_what_is_saved_is_what_was_trained(saved, tmp_path, rank):
    """Would catch a mask's row or a matrix that is left out, a scale, an orientation: beyond what bfloat16 rounds."""
    s = settings(saved, rank=rank, out=str(tmp_path / "out"), adam=0.03)
    model, (optimizer,) = s.begin()
    for seed in range(5):
        s.loss(99, model, a_batch(), torch.Generator().manual_seed(seed))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    s.save(model)
    own = {"adapter": tmp_path / "out"} if rank else {}
    loaded = load_weights.load_model(saved if rank else tmp_path / "out", device="cpu", dtype=torch.float32, **own)
    ids = torch.tensor([random_prompt(0, 12)[:-1] + [MASK]])
    before = load_weights.load_model(saved, device="cpu")
    change = (model(ids) - before(ids)).abs().max()
    assert (loaded(ids) - model(ids)).abs().max() < 0.15 * change
    row = before.config.mask_token_id
    assert not loaded.wte.weight[row].allclose(before.wte.weight[row]) and (rank == 0 or loaded.wte.weight[0].equal(before.wte.weight[0]))


def test_it_is_a_job_of_lab_train_that_leaves_an_adapter_and_goes_on_where_it_was(tmp_path, capsys):
    """Would catch a job that the trainer cannot run, resume or save, and a start that is missing only after the work."""
    flags = ["blocks", "--batch=4", "--rank=2", "--save-every=1", f"--start={command_line.TINY}"]
    for name, steps in (("whole", [4]), ("killed", [2, 4])):
        for count in steps:
            s = blocks.Settings(
                steps=4,
                batch=4,
                rank=2,
                save_every=1,
                start=str(command_line.TINY),
                run=str(tmp_path / name),
                out=str(tmp_path / f"{name}-out"),
            )
            if count < 4:
                module, opts, first = train.begin(s)
                for step in range(first, count):
                    train.train_step(s, step, 0, module, opts)
                train.save_checkpoint(s, count, module, opts)
            else:
                train.main([*flags, "--steps=4", f"--run={tmp_path / name}", f"--out={tmp_path / name}-out"])
    one, two = ((tmp_path / f"{name}-out" / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert one == two
    load_weights.load_model(command_line.TINY, adapter=tmp_path / "whole-out", device="cpu")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train.main([*flags, "--start=./nowhere", f"--run={tmp_path / 'none'}"])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1 and "no checkpoint at ./nowhere" in err and not (tmp_path / "none").exists()


def test_stories_of_each_length_alternate():
    """Would catch tasks that fall out, and held-out problems that are trained on."""
    from itertools import islice

    from lab.tasks import is_held_out

    s = blocks.Settings(start=str(command_line.TINY))
    chosen = list(islice(s.problems(3), 8))
    assert [p.task for p in chosen] == ["one-step", "two-step", "three-step", "four-step"] * 2
    assert not any(is_held_out(p.answer) for p in chosen) and chosen != list(islice(s.problems(4), 8))
    assert len({p.task for p in islice(blocks.Settings(start=str(command_line.TINY), about="all").problems(0), 99)}) > 6
