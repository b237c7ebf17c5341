"""d3LLM (arXiv 2601.07568): D2F's pipeline over the whole canvas, and entropy."""

import torch
from torch import Tensor

from kernels import Scores
from model import Pass
from strategies import Count, Share, Strategy, Window, has, named, rank, trait
from strategies.d2f import in_flight, pipeline
from strategies.llada import ORDERS


def paced(strategy: Strategy) -> None:
    if trait(strategy.schedule, "check") is not paced:
        raise ValueError("a view that a pipeline's forwards refresh needs the pipeline of d3LLM")
    in_flight(strategy)


@named("d3llm")
def d3llm(
    theta: float = 0.45,
    block_add_threshold: Share = 0.1,
    decoded_token_threshold: Share = 0.95,
    delay: int = 1,
    refresh: Count = 10000,
) -> Strategy:
    """d3LLM (arXiv 2601.07568): D2F's pipeline, but both ways visible, and entropy for confidence.

    theta: commit every token with less entropy than this, in nats
    block_add_threshold: open the next block when the last is filled this far, 0 to 1
    decoded_token_threshold: the first unfinished block must move when the one before is so full
    delay: forwards that recompute everything after a block is full, before it is kept
    refresh: recompute everything every so many forwards; 1 keeps nothing
    """

    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        rows = len(window.live), -1  # [N, L] -> [b, n * L]
        best = rank(scores.entropy.reshape(rows), candidates.reshape(rows)) == 0  # is always taken
        return (scores.entropy < theta) | best.view_as(candidates)

    def changing(s) -> Tensor:
        """The first slot of each row that is not reused, [b, 1]: leading full blocks are, each once
        `delay` + 1 forwards have seen it full."""
        P = s.prompt_length
        written = torch.where(s.x == s.mask_id, s.nfe + 1, s.written)[s.live, P:]
        written = written.unflatten(-1, (s.blocks, s.block_length))  # [b, n, L]
        filled = written.amax(-1).cummax(-1).values  # [b, n]: with which forward all up to here was
        seen = s.nfe - filled  # [b, n]: forwards that have seen it full; -1 if it is not
        whole = ((0 <= seen) & (seen < delay)).any(-1)  # [b]
        whole |= s.nfe == 0 or (s.nfe + 1) % refresh == 0
        first = P + s.block_length * (seen > delay).sum(-1)  # [b]
        return first.masked_fill(whole, 0)[:, None]

    @has(check=paced, asks=changing)
    def settling(s, window: Window) -> Pass:
        S, firsts = s.x.shape[1], [first for (first,) in s.told[changing]]
        at = Pass(slice(min(firsts), S), slice(0, S))
        if min(firsts) == max(firsts):
            return at
        return at._replace(own=torch.arange(min(firsts), S, device=s.x.device) >= changing(s))

    # one block is open before the first forward: a threshold of 0 opens two in it
    schedule = pipeline(block_add_threshold, decoded_token_threshold, first_only=True)
    has(check=paced, cuts=True)(schedule)
    return Strategy(rule, settling, schedule, eos="stop", order=ORDERS["entropy"])
