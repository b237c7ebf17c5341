"""Attention's kernels: chosen by name on a GPU, looked at once for each padded shape; and no row sees nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import attention
from attention import SDPBackend, attend, error, settle
from conftest import random_model, random_prompt
from dllm import generate
from lab.pretended import pretended, wrap

PROMPTS = [random_prompt(number, 5 + 3 * number) for number in range(3)]


def drawn(B, H, G, Q, K, D, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    numbers = lambda *shape: torch.randn(shape, generator=generator).to(dtype)
    mask = torch.rand(B, 1, Q, K, generator=generator) > 0.5
    mask[..., 0] = True
    return numbers(B, H, Q, D), numbers(B, G, K, D), numbers(B, G, K, D), mask


@pytest.mark.parametrize("dtype", attention.ERROR)
@pytest.mark.parametrize("G", [4, 2])
def test_what_a_cpu_does_is_right(dtype, G):
    """Would catch a measure that refuses kernels that are right, and heads that share keys taken for others."""
    assert error(*drawn(2, 4, G, 16, 64, 8, dtype)) < attention.ERROR[dtype]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda out: out.roll(1, 2),  # another row's
        lambda out: torch.cat((out[:, :, :-1], out[:, :, -1:] * 1.5), 2),  # the last of a tile
        lambda out: out.masked_fill(torch.arange(out.shape[2])[:, None] == 3, torch.nan),
    ],
    ids=range(3),
)
def test_a_wrong_kernel_is_given_up(wrong, monkeypatch, capsys):
    """Would catch a check that lets wrong finite numbers pass, which some GPUs have given for a few rows over many slots."""
    monkeypatch.setattr(attention, "MASKED", attention.MASKED.copy())
    right, used = attend, lambda: attention.MASKED[0]
    monkeypatch.setattr(attention, "attend", lambda *given: wrong(right(*given)) if used() is not SDPBackend.MATH else right(*given))
    attention.measured.cache_clear()
    given = ((2, 1, 16, 64), (4, 4, 8), torch.float32, torch.device("cpu"))
    attention.measured(*given)
    attention.measured(*given)
    err = capsys.readouterr().err
    assert used() is SDPBackend.MATH and err.count("\n") == 1 and err.startswith("attention of 16 x 64: EFFICIENT_ATTENTION is off by")


def test_a_right_kernel_stays(monkeypatch, capsys):
    """Negative control for the test above."""
    attention.measured.cache_clear()
    before = attention.MASKED.copy()
    attention.measured((2, 1, 16, 64), (4, 2, 8), torch.bfloat16, torch.device("cpu"))
    assert attention.MASKED == before and capsys.readouterr().err == ""


def test_it_is_looked_at_where_it_is_chosen(monkeypatch):
    """Would catch a check that no GPU ever runs, and one that a CPU pays for."""
    asked = []
    monkeypatch.setattr(attention, "measured", lambda *given: asked.append(given))
    model, mask = random_model(0), torch.ones(16, 64, dtype=torch.bool)
    settle(model, 3, mask)
    assert not asked
    with pretended():
        settle(model, 3, wrap(mask))
    assert [given[:2] for given in asked] == [((3, 16, 64), (4, 4, 8))]


class Seen(TorchFunctionMode):
    """Notes how attention is called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is F.scaled_dot_product_attention:
            self.calls.append((*arguments[:4], named["enable_gqa"]))
        return function(*arguments, **(named or {}))


def test_shared_keys_are_laid_out_where_a_mask_is(monkeypatch):
    """Would catch grouped queries under a mask, for which CUDA has no fast kernel; and copies that nobody needs."""
    q, k, v, mask = drawn(2, 4, 2, 16, 64, 8)
    with pretended(), Seen() as seen:
        for given in ((q, k, v, mask), (q, k, v, None)):
            attend(*(t if t is None else wrap(t) for t in given))
    assert [(call[1].shape[1], call[2].shape[1], call[4]) for call in seen.calls] == [(4, 4, False), (2, 2, True)]
    with Seen() as seen:
        attend(q, k, v, mask)
    assert seen.calls[0][1].shape[1] == 2 and seen.calls[0][4]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("strategy", ["ar", "apd", "guided", "d2f", "fast-dllm", "dkv", "d3llm", "sparse"])
def test_no_row_sees_nothing(strategy, compile):
    """Would catch padding that may look at nothing: 0 on a CPU, NaN on some GPUs, and then other rows' tokens change."""
    from compiled import Compiled

    model = random_model(0)
    model.fast = Compiled(model, compile=lambda function, **options: function)
    own = {"block_length": 8} if strategy not in ("ar", "apd", "guided") else {"block_length": 1}
    own |= {"guide": random_model(1)} if strategy in ("apd", "guided") else {}
    with Seen() as seen:
        generate(model, PROMPTS, strategy, gen_length=16, compile=compile, **own)
    masks = [mask for *_, mask, _ in seen.calls if mask is not None]
    assert masks and all(mask.any(-1).all() for mask in masks)


def test_padding_would_see_nothing():
    """Negative control: under a causal mask and the true slots alone, the first slots of a shorter row see none."""
    causal, real = torch.ones(8, 8, dtype=torch.bool).tril(), torch.arange(8) >= torch.tensor([0, 3])[:, None, None, None]
    assert not (causal & real).any(-1).all()
