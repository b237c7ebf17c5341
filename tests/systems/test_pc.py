"""PC-Sampler: its weights, and its table."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, random_frequencies, random_model, random_prompt
from dllm import decode
from kernels import Scores
from lab import calibrate
from shared import changed, run, same, seeds
from strategies import build
from strategies.pc import FREQUENCIES, read_frequencies

TABLE = random_frequencies()


@given(
    st.lists(st.floats(0.01, 5), min_size=8, max_size=8),
    st.sets(st.integers(0, 7), min_size=1),
    st.floats(0, 1),
    st.floats(0.1, 9),
    st.data(),
)
def test_its_score_is_that_of_the_code(doubt, masked, lam, alpha, data):
    """Would catch a missing minus sign (the README's formula), a cap on another side, and a place that counts from elsewhere."""
    token = data.draw(st.lists(st.integers(0, 39), min_size=8, max_size=8))
    share = [c / json.load(open(TABLE))["num_token"] for c in json.load(open(TABLE))["p_baseline_dict"].values()]
    f = [share[t] if t < len(share) else 1 / json.load(open(TABLE))["num_token"] for t in token]
    value = [min(-math.log(f[i] + 1e-9) / (1 + doubt[i]), alpha) * math.exp(-lam * i) for i in range(8)]
    candidates = torch.tensor([[i in masked for i in range(8)]])
    rule = build("pc", lam=lam, alpha=alpha, frequencies=TABLE).rule
    best = rule(Scores(torch.tensor([token]), torch.tensor([doubt])), candidates, SimpleNamespace(remaining=len(masked)))
    assert value[best[0].nonzero().item()] >= max(value[i] for i in masked) * (1 - 1e-4)


def flat(tmp_path) -> str:
    (tmp_path / "flat.json").write_text(json.dumps({"num_token": 40, "p_baseline_dict": {str(i): 1 for i in range(40)}}))
    return str(tmp_path / "flat.json")


def test_without_place_and_with_equal_shares_it_is_llada(tmp_path):
    """Would catch weights that differ where all tokens are as rare; and a large lam writes from left to right."""
    for seed in range(5):
        plain = {"lam": 0.0, "alpha": 1e6, "frequencies": flat(tmp_path), "block_length": 8}
        assert same(run(seed, "pc", **plain), run(seed, "llada"))
        left = run(seed, "pc", lam=50.0, alpha=0.01, frequencies=TABLE, block_length=8)
        assert (left.written[0, left.prompt_length :].diff() > 0).all()


@given(seeds)
def test_an_end_that_is_deferred_comes_last(seed):
    """Would catch a weight that brings back what `defer` has put off."""
    for step in decode(random_model(seed), random_prompt(seed, 5), "pc", frequencies=TABLE, eos="defer", gen_length=24):
        ends = step.scores.token == EOS
        assert not (step.commit & ends).any() or ends[step.candidates].all()


def test_it_differs():
    """Negative control: place, cap and shares matter."""
    own = {"frequencies": TABLE, "block_length": 8}
    for other in ({"lam": 0.0}, {"alpha": 0.5}, {"frequencies": random_frequencies(1), "lam": 0.0}):
        assert changed("pc", own, "pc", own | other) >= 1


# --- its table


def test_the_embedded_table_is_made_by_the_command(tmp_path, monkeypatch):
    """Would catch a table of another tokenizer, or of other answers, than the page says."""
    monkeypatch.chdir(tmp_path)
    calibrate.main(["table.json", "--frequencies", "--limit", "2000"])
    assert (tmp_path / "table.json").read_text() == FREQUENCIES.read_text()
    share = read_frequencies(FREQUENCIES)
    assert 0.99 < share[:-1].sum() < 1.02 and share[-1] == 1 / json.loads(FREQUENCIES.read_text())["num_token"]


@pytest.mark.parametrize(
    "text",
    ["{}", '{"num_token": 3}', '{"num_token": 0, "p_baseline_dict": {"1": 1}}', '{"num_token": 3, "p_baseline_dict": {}}',
     '{"num_token": 3, "p_baseline_dict": [1]}', '{"num_token": 3, "p_baseline_dict": {"-1": 1}}', '{"num_token": 3, "p_baseline_dict": {"x": 1}}',
     '{"num_token": 3, "p_baseline_dict": {"1": -1}}', '{"num_token": 3, "p_baseline_dict": {"1": true}}',
     '{"num_token": "3", "p_baseline_dict": {"1": 1}}', '{"num_token": 3, "p_baseline_dict": {"123456789": 1}}'],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused(text, tmp_path):
    """Would catch a traceback, a negative share, and a table as large as a number that someone has written."""
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match="frequencies .*: expected num_token and p_baseline_dict"):
        build("pc", frequencies=str(tmp_path / "t.json"))


def test_a_file_that_is_not_there_is_named():
    """Would catch an OSError."""
    with pytest.raises(ValueError, match="nowhere is not readable as JSON"):
        build("pc", frequencies="nowhere")


def test_two_calibrations_at_once_are_refused(capsys):
    """Would catch one of them that is silently left out."""
    with pytest.raises(SystemExit):
        calibrate.main(["--frequencies", "--layers", "2"])
    assert "layers is 2, expected none for --frequencies" in capsys.readouterr().err
