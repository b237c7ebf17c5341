"""The embedded model does what the documents promise, in the format they show."""

from pathlib import Path

import pytest
import torch

import dllm
from lab import command_line, compare
from lab.data import of_task
from lab.tasks import TASKS, problems
from load_weights import load_model, load_tokenizer


@pytest.fixture(scope="module")
def tiny():
    return load_model(command_line.TINY, device="cpu"), load_tokenizer(command_line.TINY)


def solved(tiny, task: str, count: int, strategy: str, **settings) -> int:
    stream = problems(77, task, held_out=True)
    items = [of_task(task, next(stream)) for _ in range(count)]
    return sum(run["right"] for run in compare.answer(*tiny, items, strategy, gen_length=128, **settings))


@pytest.mark.parametrize("task", TASKS)
def test_it_solves_nearly_all_held_out_problems(tiny, task):
    """Would catch weights, tokenizer, template and decoder that do not fit each other: each alone would still run."""
    assert solved(tiny, task, 12, "streaming") >= 9


def test_it_ends_its_answers(tiny):
    """Would catch a model that goes on after its answer: everything behind it is EOS."""
    model, tokenizer = tiny
    prompt = tokenizer.encode_chat([{"role": "user", "content": "What is 25 + 17?"}])
    result = dllm.generate(model, prompt, "fast-dllm", gen_length=128)
    assert tokenizer.decode(result.answer()) == "25 + 17 = 42. The answer is 42."
    assert (result.tokens[0, result.prompt_length + result.lengths[0] :] == model.config.eos_token_id).all()


def test_careless_decoding_costs_accuracy(tiny):
    """Would catch a model so sure, or tasks so easy, that no strategy has anything to show: eight tokens at once against one."""
    assert solved(tiny, "four-step", 8, "llada", steps=16, eos="stop") < solved(tiny, "four-step", 8, "fast-dllm") - 4


def test_the_student_wins_back_what_small_blocks_cost(tiny):
    """Would catch an adapter of another model, or one that is left out: in blocks of four the model alone loses one answer in four."""
    student = (load_model(*command_line.made_for("d2f"), device="cpu"), tiny[1])
    with_it, alone = (sum(solved(model, task, 40, "d2f", block_length=4) for task in ("sort", "total")) for model in (student, tiny))
    assert with_it >= alone + 5


def test_it_fits_into_the_repository():
    """Would catch weights saved in float32 by mistake."""
    assert sum(file.stat().st_size for file in Path(command_line.TINY).iterdir()) < 12e6
    assert torch.bfloat16.itemsize * sum(p.numel() for p in load_model(command_line.TINY, device="cpu").parameters()) < 6.2e6
