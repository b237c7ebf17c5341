"""Grades 12_sft_loss.py, and trains by a loss: `python -m course.grade.sft_loss FILE`."""

import math
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from course.checks import drawn, kind
from course.grading import DEFAULT, Endless, Part, Wrong, load, refuse, said
from dllm import generate
from lab.oracle import BOS, Oracle
from model import Config, LLaDA, Pass


def corrupt(answer: Tensor, t: Tensor, draws: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    masked = draws < t[:, None]
    return torch.where(masked, mask_id, answer), masked


def sft_loss(logits: Tensor, answer: Tensor, masked: Tensor, t: Tensor) -> Tensor:
    told = logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0]  # [B, A]
    return -torch.where(masked, told / t[:, None], 0).mean()


def two_tensors(result, answer: Tensor, *_) -> tuple[Tensor, Tensor]:
    names, kinds = ("noisy", "masked"), ("int64", "bool")
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong(f"corrupt returned {kind(result)}; expected a tuple: (noisy, masked)")
    for name, dtype, tensor in zip(names, kinds, result):
        if kind(tensor) != (expected := f"{dtype} {list(answer.shape)}"):
            raise Wrong(f"`{name}` of corrupt is {kind(tensor)}; expected {expected}")
    return result


def one_number(result, *_) -> Tensor:
    if not isinstance(result, Tensor) or kind(result) != "float32 []":
        raise Wrong(f"sft_loss returned {kind(result)}; expected float32 []: one number")
    return result


PARTS = {"corrupt": Part(corrupt, two_tensors), "sft_loss": Part(sft_loss, one_number)}
IMPORTS = {"kernels": set(), "model": set(), "strategies": set()}
MASK, HALF = 9, torch.tensor([[0.5, 0.5]]).log()


def line(mine: SimpleNamespace, answer: list, draws: list, t: list) -> None:
    """Masks as they should be, cell by cell."""
    asked = torch.tensor(answer), torch.tensor(t), torch.tensor(draws), MASK
    for name, *both in zip(("noisy", "masked"), mine.corrupt(*asked), corrupt(*asked)):
        for n, (yours, expected) in enumerate(zip(*(tensor.tolist() for tensor in both))):
            if yours != expected:
                about = f"`{name}` of example {n}, t = {t[n]} (the mask is {MASK})"
                raise Wrong(f"{about}\n\n{drawn(yours, expected, answer=answer[n], draw=draws[n])}")


def number(mine: SimpleNamespace, says: str, masked: list, t: list, logits=None) -> Tensor:
    """The loss of a few examples whose answers are all token 0, of two that are equally likely."""
    masked, t = torch.tensor(masked), torch.tensor(t)
    logits = HALF.expand(*masked.shape, 2) if logits is None else logits
    answer = torch.zeros(masked.shape, dtype=torch.int64)
    yours, right = (loss(logits, answer, masked, t) for loss in (mine.sft_loss, sft_loss))
    if not abs(yours.item() - right.item()) <= 1e-4:
        rows = "; ".join("".join("M" if cell else "-" for cell in row) for row in masked.tolist())
        asked = f"masked {rows}, t {[round(each, 3) for each in t.tolist()]}, p = 1/2 each"
        raise Wrong(f"{says}\n\n  {asked}\n  yours     {yours:.4f}\n  expected  {right:.4f}")
    return yours


def worked(mine: SimpleNamespace) -> None:
    line(mine, [[7, 3, 5, 2]], [[0.9, 0.1, 0.6, 0.4]], [0.5])
    number(mine, "two of four are masked at t = 0.5", [[False, True, False, True]], [0.5])


def properties(mine: SimpleNamespace) -> None:
    rows = [[1, 2, 3], [4, 5, 6], [7, 8, 8]]
    line(mine, rows, [[0.1, 0.5, 0.8]] * 3, [0.6, 0.9, 0.05])  # as many examples as cells
    line(mine, [[1, 2]], [[0.999999, 0.0]], [1.0])
    line(mine, [[1, 2]], [[0.5, 0.25]], [0.5])  # a draw of exactly t is not below it
    number(mine, "nothing is masked: the loss is 0, and a number", [[False] * 4], [0.01])
    number(mine, "one of four at t = 0.25", [[True, False, False, False]], [0.25])
    number(mine, "an example with few masks weighs as much", [[True, False]] * 2, [0.5, 0.1])
    number(mine, "a mean over examples", [[True, True]] * 3, [1.0, 1.0, 1.0])
    sure = torch.tensor([[[0.0, 0.0], [-40.0, 40.0]]])
    number(mine, "what is not masked does not count, however wrong", [[True, False]], [0.5], sure)
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    loss = number(mine, "gradients", [[True, True]], [0.5], logits)
    if not loss.requires_grad:
        raise Wrong("no gradient flows through sft_loss: is there a .item() or .detach() in it?")
    for name in ("permutation-4", "echo-6", "brackets-8"):
        entropy(mine, Oracle(name), name)


def entropy(mine: SimpleNamespace, oracle: Oracle, name: str, B: int = 4096) -> None:
    """A model without error has the loss log N / A."""
    (N, A), generator = oracle.strings.shape, torch.Generator().manual_seed(0)
    answer = oracle.strings[torch.randint(N, (B,), generator=generator)]
    t = (torch.arange(B) + torch.rand(B, generator=generator)).clamp(min=0.5) / B
    asked = answer, t, torch.rand(B, A, generator=generator), oracle.config.mask_token_id
    noisy, masked = mine.corrupt(*asked)
    ids = torch.cat((torch.full((B, 1), oracle.encode(BOS)[0]), noisy), 1)
    logits = oracle(ids, Pass(rows=slice(1, A + 1)))
    loss, expected = mine.sft_loss(logits, answer, masked, t).item(), math.log(N) / A
    if not abs(loss - expected) <= 0.05 * expected:
        about = f"for the model without error of {name} the loss is log {N} / {A}"
        raise Wrong(f"{about}\n\n  yours     {loss:.4f}\n  expected  {expected:.4f}, within 5 %")


# --- training -------------------------------------------------------------------------------------


def train(loss_of, oracle: Oracle, steps: int, seconds: float = math.inf, tell=lambda *told: None):
    """A network of two layers, trained on strings of the language, and the loss of each step."""
    (N, A), V, B = oracle.strings.shape, oracle.config.vocab_size, 64
    torch.manual_seed(0)
    network = LLaDA(Config(64, 2, 2, 128, V, V - 1, V - 2, max_sequence_length=A + 1))
    for weight in network.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3, (0.9, 0.95))
    prompt, losses, began = torch.full((B, 1), oracle.encode(BOS)[0]), [], time.monotonic()
    while len(losses) < steps and time.monotonic() < began + seconds:
        answer = oracle.strings[torch.randint(N, (B,))]
        t = (torch.arange(B) + torch.rand(B)).clamp(min=0.5) / B
        noisy, masked = loss_of.corrupt(answer, t, torch.rand(B, A), V - 1)
        logits = network(torch.cat((prompt, noisy), 1), Pass(rows=slice(1, A + 1)))
        loss = loss_of.sft_loss(logits, answer, masked, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        done = max(len(losses) / steps, (time.monotonic() - began) / seconds)
        optimizer.param_groups[0]["lr"] = 5e-3 * max(0.0, 1 - done)
        tell(losses)
    return network.eval().requires_grad_(False), losses


def valid(network: LLaDA, oracle: Oracle, **settings) -> float:
    """Which share of 200 sampled answers are strings of the language."""
    A = oracle.strings.shape[1]
    common = {"gen_length": A, "block_length": A, "temperature": 1.0}
    result = generate(network, [oracle.encode(BOS)] * 200, "llada", **common, **settings)
    return oracle.contains(result.tokens[:, 1:]).float().mean().item()


def learns(mine: SimpleNamespace) -> dict:
    """150 steps on the orders of four letters: the loss falls to what no model can be below."""
    oracle = Oracle("permutation-4")
    network, losses = train(mine, oracle, 150)
    least, last = math.log(24) / 4, sum(losses[-50:]) / 50
    if not last < 1.15 * least:
        raise Wrong(f"trained by it the loss fell to {last:.3f}; expected less than {1.15 * least}")
    if (share := valid(network, oracle)) < 0.9:
        raise Wrong(f"trained by it {share:.0%} of what it writes one by one are orders of ABCD")
    return {"loss": [round(last, 2), round(least, 2)], "valid": [f"{share:.0%}", "100%"]}


CHECKS = {"worked table": worked, "properties": properties, "it learns": learns}


def main() -> None:
    parser = ArgumentParser("course.grade.sft_loss", description="Train by the loss of a file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    args, oracle = parser.parse_args(), Oracle("brackets-10")
    path = args.file
    try:
        refuse(path, DEFAULT | IMPORTS, PARTS)
        mine = load(path, PARTS)

        def tell(losses: list[float]) -> None:
            if len(losses) % 100 == 0:
                print(f"step {len(losses):5}   loss {sum(losses[-100:]) / 100:.3f}", flush=True)

        print(f"no model can be below log 42 / 10 = {math.log(42) / 10:.3f}")
        network, _ = train(mine, oracle, 10**6, args.seconds, tell)
    except (Exception, Endless) as error:
        sys.exit(f"{path}: {said(error, path).strip().splitlines()[-1]}")
    one, many = valid(network, oracle, steps=1), valid(network, oracle)
    print(f"brackets that match: {many:.0%} in ten forwards, {one:.0%} in one")
    print(f"a model without error, in one: {oracle.one_step_validity():.0%}")


if __name__ == "__main__":
    main()
