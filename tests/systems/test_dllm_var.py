"""dLLM-Var: a canvas that grows."""

import torch
from hypothesis import given

from conftest import EOS, MASK, random_model, random_prompt
from dllm import decode
from shared import LENGTHS, answers, changed, run, seeds


@given(seeds)
def test_a_growing_canvas_is_serial_decoding_that_sees_nothing_behind(seed):
    """Would catch a suffix that is seen, or a block whose final keys and values are not computed. One layer makes the prefix exact."""
    model, prompt = random_model(seed, n_layers=1), random_prompt(seed, 5)
    grown = run(seed, "dllm-var", prompt, layers=1, threshold=0.5, eos="fill")
    text = list(prompt)
    for _ in range(3):
        text += [MASK] * 8
        while MASK in text:
            logits = model(torch.tensor([text]))[0]
            logits[:, MASK] = -torch.inf
            best, token = logits.softmax(-1).max(-1)
            masked = [i for i, t in enumerate(text) if t == MASK]
            take = [i for i in masked if best[i] >= 0.5] or [max(masked, key=lambda i: best[i].item())]
            for i in take:
                text[i] = int(token[i])
    assert grown.tokens[0].tolist() == text


def test_it_computes_no_more_than_the_prompt_and_two_blocks():
    """Would catch a suffix or a prefix that is computed anyway."""
    for step in decode(random_model(1), random_prompt(1, 20), "dllm-var", threshold=2.0, **LENGTHS):
        assert step.rows <= (28 if step.nfe == 1 else 16)


def test_it_stops_behind_an_eos():
    """Would catch a canvas that grows on."""
    ended = [answers(result)[0] for result in (run(seed, "dllm-var", threshold=0.5) for seed in range(24))]
    ended = [answer for answer in ended if EOS in answer[:16]]
    assert len(ended) >= 3
    for answer in ended:
        end = (answer.index(EOS) // 8 + 1) * 8
        assert answer[end:] == [EOS] * (24 - end)


def test_it_differs_from_a_canvas_of_masks():
    """Negative control: a suffix that is seen would change nothing where all agree."""
    assert changed("dllm-var", {"threshold": 0.5}, "fast-dllm", {"cache": "none", "threshold": 0.5, "eos": "stop"}) >= 3
