"""The embedded model does what the documents promise, in the format they show."""

from pathlib import Path

import pytest
import torch

import dllm
from lab import bench
from lab.tasks import problems
from load_weights import load_model, load_tokenizer


@pytest.fixture(scope="module")
def tiny():
    return load_model(dllm.EMBEDDED, device="cpu"), load_tokenizer(dllm.EMBEDDED)


def solved(tiny, task: str, count: int, strategy: str, **settings) -> int:
    stream = problems(77, task, held_out=True)
    return bench.answer(*tiny, [next(stream) for _ in range(count)], strategy, gen_length=64, **settings)[1]


def test_it_solves_more_than_half_of_the_held_out_two_step_problems(tiny):
    """Would catch weights, tokenizer, template and decoder that do not fit each other: each alone would still run."""
    assert solved(tiny, "two-step", 40, "fast-dllm") > 20


@pytest.mark.parametrize("task", ["one-step", "add", "compare", "sort", "reverse"])
def test_it_solves_at_least_half_of_the_easier_tasks(tiny, task):
    """Would catch a task that was left out of the training."""
    assert solved(tiny, task, 12, "streaming") >= 6


def test_it_ends_its_answers(tiny):
    """Would catch a model that goes on after its answer: everything behind it is EOS."""
    model, tokenizer = tiny
    prompt = tokenizer.encode_chat([{"role": "user", "content": "What is 25 + 17?"}])
    result = dllm.generate(model, prompt, "fast-dllm", gen_length=128)
    assert tokenizer.decode(result.answer()) == "25 + 17 = 42. The answer is 42."
    assert (result.tokens[0, result.prompt_length + result.lengths[0] :] == model.config.eos_token_id).all()


def test_careless_decoding_costs_accuracy(tiny):
    """Would catch a model so sure, or tasks so easy, that no strategy has anything to show: eight tokens at once against one."""
    assert solved(tiny, "two-step", 40, "llada", steps=8) < solved(tiny, "two-step", 40, "fast-dllm") - 6


def test_it_fits_into_the_repository():
    """Would catch weights saved in float32 by mistake."""
    assert sum(file.stat().st_size for file in Path(dllm.EMBEDDED).iterdir()) < 12e6
    assert torch.bfloat16.itemsize * sum(p.numel() for p in load_model(dllm.EMBEDDED, device="cpu").parameters()) < 6e6
