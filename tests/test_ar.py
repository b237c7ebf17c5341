"""The autoregressive twin: it predicts the next token from those before it, and decodes with --strategy ar."""

import pytest
import torch

import dllm
from conftest import random_model, random_prompt
from lab import ar, train
from lab.train import collate
from load_weights import load_model, load_tokenizer
from model import Pass


def test_every_answer_token_is_predicted_from_those_before_it():
    """Would catch logits of the wrong position, a token that sees itself, padding that is seen, and weights other than 1 / length."""
    model, pairs = random_model(0), [(random_prompt(1, 5), random_prompt(2, 4)), (random_prompt(3, 3), random_prompt(4, 2))]
    loss, counts = ar.Settings().loss(0, model, collate(pairs, 4, 38), None)
    expected, right = 0.0, 0
    for prompt, answer in pairs:
        padded = answer + [38] * (4 - len(answer))
        for i, token in enumerate(padded):
            text = torch.tensor([prompt + padded[:i]])
            mask = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).tril()
            logits = model(text, Pass(mask=mask))[0, -1]
            weight = 1 / len(answer) if i < len(answer) else 1 / len(answer) / (4 - len(answer))
            expected += weight * torch.nn.functional.cross_entropy(logits, torch.tensor(token)).item()
            right += int(logits.argmax() == token)
    assert loss.item() == pytest.approx(expected, rel=1e-4) and counts.tolist() == [8, right]


def test_it_gets_the_problems_of_the_tiny_model_in_as_many_steps():
    """Would catch a comparison with a model that saw other data, or more of it."""
    own, others = ar.Settings(), train.Settings()
    assert own.steps == others.steps and own.main_steps == others.main_steps
    for step in (0, own.main_steps, own.steps - 1):
        seen = [sorted(tuple(row) for batch in train.batches(s, step, 0) for row in batch.prompt.tolist()) for s in (own, others)]
        assert seen[0] == seen[1] and len(seen[0]) == 48


def test_it_is_a_job_of_lab_train_that_leaves_a_model(tmp_path):
    """Would catch a job that the trainer cannot run or save, and a model that --strategy ar cannot decode."""
    size = ["--width=8", "--layers=1", "--heads=1", "--ffn=8", "--no-compile", "--processes=1", "--steps=2", "--batch=2"]
    train.main(["ar", *size, f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    model, tokenizer = load_model(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    result = dllm.generate(model, tokenizer.encode_chat([{"role": "user", "content": "3 + 4"}]), "ar", gen_length=8)
    assert result.nfe <= 8 and model.config.mask_token_id not in result.tokens
