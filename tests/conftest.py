"""What the tests share: small random models whose confidences are spread out, so that strategies really differ on them."""

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that a bare `pytest` finds the project, too

from model import Config, LLaDA

torch.set_num_threads(1)  # these models are so small that a second thread only waits
settings.register_profile("default", deadline=None, max_examples=15, derandomize=True)
settings.load_profile("default")

MASK, EOS, VOCABULARY = 39, 38, 40


def random_model(seed: int, n_layers: int = 2, n_kv_heads: int = 4, sharpness: float = 4.0, max_sequence_length: int = 512) -> LLaDA:
    """A model of 40 tokens with random float32 weights; the larger the sharpness, the surer it is."""
    config = Config(32, n_layers, 4, 48, VOCABULARY, MASK, EOS, n_kv_heads, max_sequence_length)
    model = LLaDA(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            gain = sharpness if name == "ff_out.weight" else 1.0 if name == "wte.weight" else 2.0
            fan_in = 1 if name == "wte.weight" else weight.shape[1]
            weight.copy_(torch.randn(weight.shape, generator=generator) * gain / math.sqrt(fan_in))
    return model


def random_prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, EOS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def model() -> LLaDA:
    return random_model(0)
