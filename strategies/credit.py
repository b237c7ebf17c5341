"""CreditDecoding (arXiv 2510.06133): what stays the likeliest token gains confidence."""

import torch
from torch import Tensor

from model import Pass
from strategies import Forward, Share, Strategy, Sure, Window, named
from strategies.fast_dllm import After, Before, CacheSetting, cached, threshold_rule
from strategies.llada import one_block, serial


class Credit:
    """Logits raised by alpha * log(1 + credit), for which each forward of a block adds to what is
    left of the credit, its beta-th part, confidence ** gamma of the likeliest token.

    inside: what computes the logits; None for the canvas
    """

    def __init__(self, alpha: float, gamma: float, beta: float, inside: Forward | None = None):
        self.alpha, self.gamma, self.beta, self.inside = alpha, gamma, beta, inside

    def check(self, strategy: Strategy) -> None:
        one_block(strategy, "credit, which is that of a block's forwards,")

    memory = lambda self, s: 8 * s.block_length * s.model.config.vocab_size  # and raised logits

    def __call__(self, s, window: Window, at: Pass) -> Tensor:
        logits = self.inside(s, window, at) if self.inside else s.forward(window, at)
        s.forbid(logits)
        if window.age == 0:
            self.credit = logits.new_zeros(len(s.x), *logits.shape[1:], dtype=torch.float32)
        confidence, token = logits.float().softmax(-1).max(-1, keepdim=True)  # [b, L, 1]
        earned = torch.where(s.candidates(window)[..., None], confidence**self.gamma, 0)
        credit = (self.beta * self.credit[window.live]).scatter_add(-1, token, earned)
        self.credit[window.live] = credit
        return logits + self.alpha * credit.log1p()


@named("credit")
def credit(
    threshold: Sure = 0.9,
    alpha: float = 0.7,
    gamma: float = 0.2,
    beta: Share = 0.8,
    cache: CacheSetting = "prefix",
    prefix_look: Before = None,
    after_look: After = None,
) -> Strategy:
    """CreditDecoding (arXiv 2510.06133): a token that stays the first choice gains confidence over
    the forwards of its block.

    threshold: commit every token at least this confident, credit counted
    alpha: weight of the credit; 0 for none
    gamma: power of the confidence that is earned; below 1 it lifts the unsure
    beta: share of the credit that is kept from forward to forward
    """
    view = cached(cache, prefix_look=prefix_look, after_look=after_look)
    forward = Credit(alpha, gamma, beta)
    return Strategy(threshold_rule(threshold), view, serial, forward=forward)
