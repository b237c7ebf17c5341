"""Learn2PD (arXiv 2509.25188): a filter, learnt by lab/filter.py, says which tokens are final."""

from os.path import isfile
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from kernels import Scores
from load_weights import read_tensors
from strategies import Strategy, Sure, Window, has, named, rank, require
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import serial

FILTER = Path(__file__).parent.parent / "weights" / "tiny-filter.safetensors"
FILTER_PARTS = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")


def load_filter(source: str | Path) -> list[Tensor]:
    """The FILTER_PARTS, float32 [L, L], [L], [L, L], [L], for blocks of L tokens."""
    if not isfile(source):
        made = f"train one by python -m lab.train filter --out {source}"
        raise ValueError(f"there is no filter {source}: {made}")
    parts = dict(read_tensors(Path(source), "cpu"))
    shapes = [tuple(parts[name].shape) for name in FILTER_PARTS if name in parts]
    L = shapes[0][0] if shapes and shapes[0] else 0
    if set(parts) != set(FILTER_PARTS) or L < 1 or shapes != [(L, L), (L,)] * 2:
        names = ", ".join(FILTER_PARTS)
        shapes = "[L, L], [L], [L, L], [L]"
        raise ValueError(f"filter {source} does not hold just {names} of shapes {shapes}")
    return [parts[name].float() for name in FILTER_PARTS]


@named("learn2pd", filter="tiny-filter.safetensors")
def learn2pd(
    tau: Sure = 0.96, filter: str | None = None, cache: CacheSetting = "prefix"
) -> Strategy:
    """Learn2PD (arXiv 2509.25188): a tiny network learns from the confidences of a block which of
    its tokens are final.

    tau: commit every token that the filter takes for final with a probability above this
    filter: the network's file, made by `python -m lab.train filter` for one model and one
        block_length; none takes the embedded model's
    """
    parts = load_filter(filter or FILTER)
    length = len(parts[1])
    valid = f"{length}, which the filter is for"

    @has(fits=lambda s: require(s.block_length == length, "block_length", s.block_length, valid))
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        """What the network accepts, and the surest. It is shown what the model says now, of
        written cells, too."""
        parts[:] = (part.to(candidates.device) for part in parts)  # once: the host waits for it
        weight, bias, last_weight, last_bias = parts
        hidden = F.linear(scores.confidence, weight, bias).relu()
        final = F.linear(hidden, last_weight, last_bias).sigmoid() > tau  # [N, L]
        return final | (rank(scores.doubt, candidates) == 0)

    return Strategy(rule, cached(cache), serial, eos="stop", block_length=length, fixed=True)
