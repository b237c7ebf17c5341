"""From logits to everything a commit rule may ask, in one kernel: token, doubt, margin, entropy.

Doubt is the sum over v != token of exp(z_v - z_token), so that probability = 1 / (1 + doubt). In
float32 a probability runs into 1.0 and the order of the surest tokens is lost; their doubts, 1e-9
and 1e-12, stay apart. Rules order by doubt and compare 1 / (1 + doubt).

Letters: V vocabulary; "..." whatever stands before it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max
NEVER = -104.0  # exp of it is 0 in float32, and so is its product with that; -inf gives NaN


class Scores(NamedTuple):
    """What one forward says about each position, all of shape [...]."""

    token: Tensor  # int64: the arg-max, or the sampled token
    doubt: Tensor  # float32, 0 .. LARGEST: the odds against `token`
    margin: Tensor  # float32, 0 .. 1: probability of the best token minus that of the second best
    entropy: Tensor  # float32, 0 .. log V, in nats

    @property
    def confidence(self) -> Tensor:
        """The probability of `token`, float32."""
        return 1 / (1 + self.doubt)


def score(logits: Tensor, noise: Tensor | None = None) -> Scores:
    """Score every position from its logits [..., V], of any dtype; -inf is what is never chosen.

    noise: float32 [..., V] to sample with, the arg-max of logits + noise (see `gumbel`); scores
    always come from the clean logits. Each line below is an element-wise operation or a reduction
    over V, which torch.compile fuses into passes that store no [..., V].
    """
    z = logits.float()
    best, token = z.max(dim=-1)
    ids = torch.arange(z.shape[-1], device=z.device)
    log_odds = z - best[..., None]  # [..., V]
    # of every token but the best; a masked_fill is slower, and copies, too
    odds = torch.where(ids == token[..., None], 0, log_odds.exp())
    doubt = odds.sum(-1)
    margin = (1 - odds.amax(-1)) / (1 + doubt)
    # without odds.log(): compiled, 3.7 ms for 6.0 at 32 x 32000 (docs/speed.md)
    expected = (odds * log_odds.clamp(min=NEVER)).sum(-1)
    entropy = doubt.log1p() - expected / (1 + doubt)
    if noise is not None:
        sampled = (z + noise).argmax(-1)
        behind = best - z.gather(-1, sampled[..., None])[..., 0]  # 0 for the best token
        farther = ((1 + doubt) * behind.exp() - 1).clamp(max=LARGEST)
        doubt, token = torch.where(sampled == token, doubt, farther), sampled
    return Scores(token, doubt, margin, entropy)


def gumbel(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Noise float32 [..., V] that makes the arg-max a sample at `temperature`.

    LLaDA's add_gumbel_noise, as a sum instead of a quotient: -log of an exponential variate is a
    Gumbel variate. Drawn in float64, as LLaDA does: with 24 bits the tail that wins is cut off.
    """
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
    waiting = torch.empty(logits.shape, device=logits.device, dtype=wide)
    waiting.exponential_(generator=generator)
    return (-temperature * waiting.log()).float()
