"""Likelihood: the chain rule against languages that are counted, the estimate against the mean over all orders, and LLaDA's own rounding."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model, random_prompt
from lab import likelihood
from lab.likelihood import chain, mask_counts, monte_carlo
from lab.oracle import Oracle

STRINGS = {"permutation-6": "CADBFE", "bits-8": "AABBABAB", "alternate-8": "ABABABAB", "echo-8": "B......B", "brackets-8": "(()())()"}


class Blurred(Oracle):
    """An oracle that guesses the more the more it sees, so that its orders disagree, as a network's do."""

    def __call__(self, ids, *arguments, **named):
        seen = (ids != self.config.mask_token_id).sum(-1)[:, None, None] - 1
        guess = torch.ones(self.config.vocab_size) * (torch.arange(self.config.vocab_size) < len(self.symbols) - 3)
        share = 0.1 * seen
        return ((1 - share) * super().__call__(ids, *arguments, **named).exp() + share * guess / guess.sum()).log()


def asked(name: str, text: str, kind=Oracle):
    oracle = kind(name)
    return oracle, oracle.encode_chat([]), oracle.encode(text)


def over_orders(model, prompt, answer) -> torch.Tensor:
    orders = itertools.permutations(range(len(answer)))
    return torch.tensor([chain(model, prompt, answer, order)[0] for order in orders], dtype=torch.float64)


@given(st.sampled_from(list(STRINGS)), st.integers(0, 999))
def test_on_an_oracle_every_order_gives_the_probability(name, seed):
    """Would catch a conditional that sees what is not written yet, or not what is, and an order that is read the other way round."""
    model, prompt, answer = asked(name, STRINGS[name])
    order = torch.randperm(len(answer), generator=torch.Generator().manual_seed(seed)).tolist()
    assert chain(model, prompt, answer, order)[0] == pytest.approx(-math.log(len(model.strings)), abs=1e-5)


@pytest.mark.parametrize("kind", [Blurred, "network", "shifted"])
def test_a_model_gives_each_order_its_own_value(kind):
    """Negative control for the test above: were the order of no account, all would be equal. And the order is that in which tokens are
    written: the value of one is the sum of what single forwards say; of a model like Dream one slot before."""
    if kind in ("network", "shifted"):
        model = random_model(0, shift=int(kind == "shifted"))
        prompt, answer = random_prompt(0, 5), random_prompt(1, 4)
    else:
        model, prompt, answer = asked("brackets-4", "(())", Blurred)
    assert over_orders(model, prompt, answer).std() > 0.01
    order, canvas, total = [2, 0, 3, 1], [model.config.mask_token_id] * 4, 0.0
    for place in order:
        logits = model(torch.tensor([prompt + canvas]))[0, len(prompt) + place - model.config.shift].float()
        logits[model.config.mask_token_id] = -math.inf
        total += logits.log_softmax(-1)[answer[place]].item()
        canvas[place] = answer[place]
    assert chain(model, prompt, answer, order)[0] == pytest.approx(total, abs=1e-4)


def rounded(L: int, samples: int, generator: torch.Generator) -> torch.Tensor:
    """The mask counts of LLaDA's get_log_likelihood."""
    first = int(torch.randint(1, L + 1, (), generator=generator))
    spread = torch.linspace(first, first + (samples - 1) * (L / samples), samples)
    return (spread.round().long() - 1) % L + 1


@pytest.mark.parametrize(
    "name, text, theirs", [("permutation-4", "BDCA", -3.6685), ("permutation-2", "AB", -0.8664), ("alternate-4", "ABAB", -1.0397)]
)
def test_eight_samples_are_exact_where_they_can_be(name, text, theirs, monkeypatch):
    """Would catch mask counts that do not come equally often. Negative control: with LLaDA's own rounding the value is another, without
    any variance that would show it."""
    model, prompt, answer = asked(name, text)
    exact = -math.log(len(model.strings))
    many = lambda: torch.tensor([monte_carlo(model, prompt, answer, 8, seed) for seed in range(20)])
    assert many().mean() == pytest.approx(exact, abs=1e-5) and many().std() < 1e-5
    monkeypatch.setattr(likelihood, "mask_counts", rounded)
    assert many().mean() == pytest.approx(theirs, abs=5e-5) and many().std() < 1e-4 and abs(theirs - exact) > 0.1


@given(st.integers(1, 20), st.integers(1, 40))
def test_every_count_comes_as_often(L, samples):
    """Would catch a count of 0, one that never comes, and a spread that begins at the same place in every run."""
    seen = torch.zeros(L + 1)
    for seed in range(50):
        counts = mask_counts(L, samples, torch.Generator().manual_seed(seed))
        often = counts.bincount(minlength=L + 1)
        assert often[0] == 0 and len(counts) == samples and often[1:].max() - often[1:].min() <= 1
        seen += often
    assert (seen[1:] > 0).all() or samples * 50 < 20 * L


@pytest.mark.parametrize("name, text", [("echo-4", "C..C"), ("brackets-4", "()()")])
def test_the_estimate_has_the_mean_over_orders(name, text):
    """Would catch a sum that is weighted by what is left instead of by what was masked; 4 standard errors. Where conditionals disagree,
    that mean is below the log of the mean probability."""
    model, prompt, answer = asked(name, text, Blurred)
    values = over_orders(model, prompt, answer)
    drawn = torch.tensor([monte_carlo(model, prompt, answer, 600, seed, batch=600) for seed in range(30)])
    error = drawn.std().item() / 30**0.5
    assert drawn.mean() == pytest.approx(values.mean().item(), abs=4 * error + 1e-6) and error < 0.02
    assert values.mean() < values.exp().mean().log()


def test_outside_the_language_nothing_is_likely():
    """Would catch NaN, from -inf times a mask of 0, and a value of what comes after the language was left."""
    model, prompt, answer = asked("permutation-4", "AABC")
    assert chain(model, prompt, answer) == (-math.inf, False)
    assert {monte_carlo(model, prompt, answer, 32, seed) for seed in range(9)} == {-math.inf}


def test_a_batch_changes_nothing():
    """Would catch canvases that are lost between batches, or counted twice."""
    model, prompt, answer = random_model(0), random_prompt(0, 5), random_prompt(1, 6)
    values = [(chain(model, prompt, answer, batch=n)[0], monte_carlo(model, prompt, answer, 10, batch=n)) for n in (1, 4, 99)]
    assert all(value == pytest.approx(values[0], abs=1e-4) for value in values)


def test_the_likeliest_in_each_turn_is_what_greedy_decoding_writes():
    """Would catch a flag that looks at the whole answer at once, and one that is always true."""
    model, prompt = random_model(0), random_prompt(0, 5)
    canvas = [model.config.mask_token_id] * 6
    for place in range(6):
        logits = model(torch.tensor([prompt + canvas]))[0, len(prompt) + place]
        logits[model.config.mask_token_id] = -math.inf
        canvas[place] = int(logits.argmax())
    assert chain(model, prompt, canvas)[1]
    assert not chain(model, prompt, [*canvas[:2], (canvas[2] + 1) % 38, *canvas[3:]])[1]


def said(capsys, *arguments) -> str:
    likelihood.main(list(arguments))
    return capsys.readouterr().out


def test_the_command_says_both(capsys):
    """Would catch a command of another order than it says, or of another prompt."""
    line = ["--model", "oracle:permutation-4", "--prompt", "go", "--answer", "ABCD", "--samples", "8"]
    assert said(capsys, *line) == "order left: -3.1781, each the likeliest in its turn\nMonte Carlo, 8 samples: -3.1781\n"
    assert said(capsys, *line[:-1], "0", "--order", "2,0,3,1").startswith("order 2,0,3,1: -3.1781")
    sums = ["--prompt", "What is 25 + 17?", "--samples", "0", "--answer"]
    right, wrong = (float(said(capsys, *sums, f"25 + 17 = {n}.").split()[2].rstrip(",")) for n in (42, 43))
    assert right > -0.1 and wrong < -3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--answer", ""], "the answer is empty"),
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "\ud800"], "the prompt is not valid UTF-8"),
        (["--samples", "-1"], "samples is -1, expected at least 1, or 0 for none"),
        (["--batch-size", "0"], "batch_size is 0, expected at least 1"),
        (["--seed", "-1"], "seed is -1, expected 0 to"),
        (["--order", "up"], "order is 'up', expected left, right, random, or each of 0 .. 5 once, as in 2,0,1"),
        (["--order", "0,0,1,2,3,4"], "expected each of 0 .. 5 once"),
        (["--answer", "1 " * 9000], "together more than the model's"),
        (["--model", "./nowhere"], "no checkpoint at ./nowhere"),
        (["--model", "oracle:bits-4", "--answer", "ABX"], "'X' is no symbol of this language: A B"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, monkeypatch, arguments, message):
    """Would catch a traceback, and a model that is loaded for nothing."""
    monkeypatch.setattr("lab.command_line.load_model", lambda *_: pytest.fail("loaded a model"))
    with pytest.raises(SystemExit) as exit:
        likelihood.main(["--prompt", "a", "--answer", "25 + 17 = 42.", *arguments])
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "") and err.count("\n") == 1 and message in err
