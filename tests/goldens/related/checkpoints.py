"""The random checkpoints of cases.jsonl, rebuilt from their names; and the filter and the guide that some cases need.

`checkpoint` of a case is "a", "b" or "c" (the folders beside this one), "g" (pure Python's random numbers), or {seed, head, n_kv_heads}.
Small differences in the last bit of a weight do not matter: every case stands when each weight is changed by a millionth of itself.
"""

import math
import random

import torch

from model import Config, LLaDA


def seeded(seed: int, head: float = 4.0, n_kv_heads: int = 4) -> LLaDA:
    """Width 32, 2 layers, 4 heads, 40 tokens, of which 38 is EOS and 39 the mask; `head` is the gain of the logits."""
    model = LLaDA(Config(32, 2, 4, 48, 40, 39, 38, n_kv_heads, 512)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            gain = 3.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 2.0
            gain = {"ff_out.weight": head, "wte.weight": 1.0}.get(name, gain)
            fan_in = 1 if name == "wte.weight" else weight.shape[1]
            weight.copy_(torch.randn(weight.shape, generator=generator) * gain / math.sqrt(fan_in))
    return model


def plain(seed: int = 0) -> LLaDA:
    """Checkpoint g: width 32, 3 layers, 4 heads, 48 tokens, of which 46 is EOS and 47 the mask. Drawn in the order of the code below."""
    C, F, V, L = 32, 48, 48, 3
    rng = random.Random(seed)
    draw = lambda rows, columns, gain: torch.tensor(  # noqa: E731
        [[rng.gauss(0, 1) * gain for _ in range(columns)] for _ in range(rows)], dtype=torch.float64
    ).float()
    norm = lambda: 1 + draw(1, C, 0.1)[0]  # noqa: E731
    weights = {"wte.weight": draw(V, C, 1.0), "ln_f.weight": norm(), "ff_out.weight": draw(V, C, 2.6 / math.sqrt(C))}
    for layer in range(L):
        at = f"blocks.{layer}."
        weights |= {at + "attn_norm.weight": norm(), at + "ff_norm.weight": norm()}
        weights |= {at + f"{name}.weight": draw(C, C, 2.0 / math.sqrt(C)) for name in ("q_proj", "k_proj")}
        weights |= {at + f"{name}.weight": draw(C, C, 1.6 / math.sqrt(C)) for name in ("v_proj", "attn_out")}
        weights |= {at + f"{name}.weight": draw(F, C, 1.4 / math.sqrt(C)) for name in ("ff_proj", "up_proj")}
        weights |= {at + "ff_out.weight": draw(C, F, 1.4 / math.sqrt(F))}
    model = LLaDA(Config(C, L, 4, F, V, 47, 46, 4, 512)).eval().requires_grad_(False)
    model.load_state_dict(weights)
    return model


def learned_filter(k: int, seed: int, bias: float, gain: float = 6.0) -> list[torch.Tensor]:
    """Learn2PD's filter of a case's extra {"filter": [k, seed, bias]}: weight and bias of its two layers."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator) / k**0.5  # noqa: E731
    return [torch.eye(k) + 0.3 * draw(k, k), 0.1 * draw(k), gain * torch.eye(k) + draw(k, k), draw(k) + bias]


def guide_of(model: LLaDA) -> LLaDA:
    """APD's guide of a case's extra {"guide": ...}: the model itself (given as a copy of its own), its logits times 0.7."""
    model.ff_out.weight.mul_(0.7)
    return model


def frequencies(seed: int) -> torch.Tensor:
    """PC-Sampler's table of a case's extra {"frequencies": [seed]}: each token's share in a corpus, float32 [40]."""
    share = torch.rand(40, generator=torch.Generator().manual_seed(seed)) ** 3 + 1e-4
    return share / share.sum()
