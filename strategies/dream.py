"""Dream's own sampler (arXiv 2508.15487), on any model."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Pass
from strategies import Count, Forward, Share, Strategy, Window, has, named
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import ORDERS, Timesteps, serial

ALGORITHMS = {"entropy": "entropy", "maskgit_plus": "low_confidence", "topk_margin": "margin"}


def truncated(top_p: float | None, top_k: int | None) -> Forward:
    """Logits of the likeliest tokens alone: the fewest whose probabilities exceed top_p, and of
    these top_k. What is sure is scored by these, too."""

    @has(shifts=True, memory=lambda s: s.block_length * s.model.config.vocab_size * 24)
    def forward(s, window: Window, at: Pass) -> Tensor:
        logits = s.forward(window, at)  # [b, n * L, V]
        s.forbid(logits)
        if top_p is not None:
            warm, token = (logits.float() / (s.settings.temperature or 1)).sort(descending=True)
            before = F.pad(warm.softmax(-1).cumsum(-1)[..., :-1], (1, 0))
            out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, token, before > top_p)
            logits = logits.masked_fill(out, -torch.inf)
        if top_k is not None:
            least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return logits

    return forward


@named("dream")
def dream(
    alg: Literal["entropy", "maskgit_plus", "topk_margin"] = "entropy",
    eps: Share = 0.001,
    top_p: Share | None = None,
    top_k: Count | None = None,
    cache: CacheSetting = "none",
) -> Strategy:
    """Dream (arXiv 2508.15487): its own sampler, anywhere in the answer the surest of the masks, so
    many as the time falls in a step.

    alg: the surest are those of least entropy, highest probability or widest margin
    eps: the time at the end; more than 0 makes the first steps smaller, and the last larger
    top_p: choose among the likeliest tokens that together are more probable than this
    top_k: choose among so many of the likeliest tokens
    """
    forward = None if top_p is top_k is None else truncated(top_p, top_k)
    order = ORDERS[ALGORITHMS[alg]]
    own = {"order": order, "forward": forward, "block_length": None}
    return Strategy(Timesteps(eps), cached(cache), serial, **own)
