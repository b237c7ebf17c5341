"""From logits to everything a commit rule may ask: token, doubt and, on demand, the rest.

Doubt is the sum over v != token of exp(z_v - z_token), so that probability = 1 / (1 + doubt). In
float32 a probability runs into 1.0 and the order of the surest tokens is lost; their doubts, 1e-9
and 1e-12, stay apart. Rules order by doubt and compare 1 / (1 + doubt).

Letters: N positions, V vocabulary; "..." whatever stands before it.
"""

from collections.abc import Callable
from functools import cached_property, partial
from math import gcd, inf

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max
NEVER = -104.0  # exp of it is 0 in float32, and so is their product; that of -inf is NaN


class Scores:
    """What one forward says about each position, all of shape [...]. What is not there yet `ask`
    gives by its name, when something first reads it."""

    def __init__(self, token: Tensor, doubt: Tensor, ask: Callable | None = None):
        self.token = token  # int64: the arg-max, or the sampled token
        self.doubt = doubt  # float32, as all below, 0 .. LARGEST: the odds against `token`
        self.ask = ask

    # the probability of `token`; that of the best token minus that of the second best; in nats; the
    # odds against what stands in a written cell
    confidence = property(lambda self: 1 / (1 + self.doubt))
    margin = cached_property(lambda self: self.ask("margin"))
    entropy = cached_property(lambda self: self.ask("entropy"))
    standing = cached_property(lambda self: self.ask("standing"))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Scores":
        """The same with each tensor changed; those that nothing has asked for, when it does."""
        token, doubt = change(self.token), change(self.doubt)
        return Scores(token, doubt, lambda name: change(getattr(self, name)))

    def ordered(self, doubt: Tensor) -> "Scores":
        return Scores(self.token, doubt, partial(getattr, self))


def score(logits: Tensor, noise=None, stands=None, run: Callable | None = None) -> Scores:
    """Score every position from its logits [..., V], of any dtype; -inf is what is never chosen.

    noise: float32 [..., V] to sample with, the arg-max of logits + noise (see `gumbel`); scores
    always come from the clean logits. stands: int64 [...], the tokens that stand there now.
    run: runs the function below that is its first argument as torch.compile makes it
    """
    z = logits.flatten(0, -2)  # [N, V]
    best, gap, doubt, token = run(surest, z) if run else surest_in_place(z)

    def against(token: Tensor) -> Tensor:
        behind = best - z.gather(-1, token[:, None])[:, 0].float()  # 0 for the best token
        return (behind.expm1() * (1 + doubt) + doubt).clamp(max=LARGEST)

    def ask(name: str) -> Tensor:
        if name == "margin":
            return (1 - gap.exp()) / (1 + doubt)
        if name == "standing":
            return against(stands.flatten())
        return run(entropy, z, best, doubt) if run else entropy(z, best, doubt)

    chosen = token if noise is None else argmax(z + noise.flatten(0, -2))
    scores = Scores(chosen, doubt if noise is None else against(chosen), ask)
    return scores.each(lambda t: t.view(logits.shape[:-1]))


def surest(z: Tensor) -> tuple[Tensor, ...]:
    """The best logit, how far the second is from it, the doubt of the best, and its id, each [N].
    torch.compile makes this two passes that store no [N, V]."""
    best, token = z.float().max(dim=-1, keepdim=True)
    others = torch.arange(z.shape[-1], device=z.device) != token
    behind = torch.where(others, z.float() - best, -inf)  # [N, V]
    return best[:, 0], behind.amax(-1), behind.exp().sum(-1), token[:, 0]


def surest_in_place(z: Tensor) -> tuple[Tensor, ...]:
    """The same without torch.compile, in less time than a softmax and its maximum take: with the
    best taken out, and put back, the sum is 1 over the share of the second."""
    z = z.float().contiguous()
    token = argmax(z)[:, None]
    best = z.gather(-1, token)
    z.scatter_(-1, token, best + NEVER)
    gap, share = z.amax(-1) - best[:, 0], z.softmax(-1).amax(-1)
    z.scatter_(-1, token, best)
    return best[:, 0], gap, gap.exp() / share, token[:, 0]


def argmax(z: Tensor) -> Tensor:
    """z.argmax(-1) of [N, V] in two steps: a CPU finds a maximum ten times as fast as its place."""
    parts = z.unflatten(-1, (-1, gcd(z.shape[-1], 128)))  # [N, V / 128, 128]
    part = parts.amax(-1).argmax(-1)  # [N]
    return part * parts.shape[-1] + parts.take_along_dim(part[:, None, None], 1)[:, 0].argmax(-1)


def entropy(z: Tensor, best: Tensor, doubt: Tensor) -> Tensor:
    behind = (z.float() - best[:, None]).clamp(min=NEVER)  # [N, V]
    return doubt.log1p() - behind.softmax(-1).mul_(behind).sum(-1)


def gumbel(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Noise float32 [..., V] that makes the arg-max a sample at `temperature`.

    LLaDA's add_gumbel_noise, as a sum instead of a quotient: -log of an exponential variate is a
    Gumbel variate. Drawn in float64, as LLaDA does: with 24 bits the tail that wins is cut off,
    and CUDA makes a float32 exponential of a uniform that has no more just below 1.
    """
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
    waiting = torch.empty(logits.shape, device=logits.device, dtype=wide)
    waiting.exponential_(generator=generator)
    return waiting.log_().mul_(-temperature).float()
