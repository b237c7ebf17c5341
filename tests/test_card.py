"""CARD's training: where the masks lie, what a row counts for, and what it costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab import ar, blocks, card, command_line, train
from test_blocks import a_batch


def settings(**changes) -> card.Settings:
    return card.Settings(start=str(command_line.TINY), **{"rank": 2, "block": 4} | changes)


@given(st.integers(0, 999), st.floats(1, 4))
def test_masks_lie_in_a_soft_tail(seed, wide):
    """Would catch masks behind the answer, too many or none, and a tail that is as hard as a window of its own number would make it."""
    lengths = torch.tensor([1, 5, 12, 20])
    masked = card.soft_tail(lengths, 24, wide, torch.Generator().manual_seed(seed))
    for row, length in zip(masked, lengths.tolist()):
        count = int(row.sum())
        assert 1 <= count <= length and not row[length:].any()
        assert not row[: length - min(length, int(wide * count))].any()


def test_without_room_the_tail_is_hard():
    """Negative control: with room for no more than the masks there is nothing among them; with more there is."""
    lengths = torch.full((200,), 20)
    hard, soft = (card.soft_tail(lengths, 20, wide, torch.Generator().manual_seed(0)) for wide in (1.0, 1.5))
    ragged = lambda masked: (masked.cummax(1).values != masked).any(1).float().mean()
    assert ragged(hard) == 0 and ragged(soft) > 0.5


def test_what_a_row_counts_for_by_hand():
    """Would catch a weight that forgets too soon, or counts a mask behind the row. S is 0, 1, 2.5, 1.25, 0.625 + 1."""
    masked = torch.tensor([[False, True, True, False, True]])
    assert card.trust(masked, 0.5).tolist() == [pytest.approx([1, 1 / 2, 1 / 3.5, 1 / 2.25, 1 / 2.625])]


def test_on_clean_text_the_loss_is_that_of_the_next_token(monkeypatch):
    """Would catch a row that is off by one, and a mask that looks ahead: the twin's own loss, when nothing is masked."""
    s = settings()
    model, _ = s.begin()
    monkeypatch.setattr(card, "soft_tail", lambda length, A, *_: torch.zeros(len(length), A, dtype=torch.bool))
    batch = blocks.in_whole_blocks(a_batch(), 4, model.config.eos_token_id)
    mine, counts = s.loss(0, model, a_batch(), torch.Generator())
    theirs, _ = ar.Settings().loss(0, model, batch, torch.Generator())
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert counts[0] == 0


def test_a_pass_reads_the_answer_once():
    """Would catch a second stream: rows of a pass beside those of blocks with two views."""
    seen = []

    class Counting(torch.nn.Module):
        config = settings().begin()[0].config

        def forward(self, ids, at, start=None):
            seen.append(ids.shape[1])
            rows = range(ids.shape[1])[at.rows] if isinstance(at.rows, slice) else at.rows
            return torch.zeros(len(ids), len(rows), self.config.vocab_size)

    for s in (settings(), blocks.Settings(start=str(command_line.TINY), block=4)):
        s.loss(10**6, Counting(), a_batch(11), torch.Generator().manual_seed(0))
    P, A = 6, 12
    assert seen == [P + A - 1, P + 3 * A]


def test_it_is_a_job_of_lab_train_that_leaves_an_adapter(tmp_path, capsys):
    """Would catch a job that the trainer cannot run or save."""
    flags = [
        "card",
        "--steps=2",
        "--batch=4",
        "--rank=2",
        f"--start={command_line.TINY}",
        f"--run={tmp_path / 'run'}",
        f"--out={tmp_path / 'out'}",
    ]
    train.main(flags)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        train.main([*flags, "--wide=0.5"])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.count("\n") == 1 and "wide is 0.5, expected at least 1" in err
