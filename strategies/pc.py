"""PC-Sampler (arXiv 2508.13021): what is rare and stands early before what is common and late."""

from math import inf
from pathlib import Path

import torch
from torch import Tensor

from kernels import Scores
from load_weights import read_json
from strategies import Strategy, Window, has, named
from strategies.fast_dllm import CacheSetting, cached
from strategies.llada import quota, serial

FREQUENCIES = Path(__file__).parent.parent / "weights" / "tiny-frequencies.json"


def read_frequencies(file: str | Path) -> Tensor:
    """Each token's share in a corpus, float32 [n]; all from n on have the last. A file of the
    authors' says how large the corpus is and how often ids are there; the others count once."""
    told = read_json(Path(file))
    size, counts = told.get("num_token"), told.get("p_baseline_dict")
    is_number = lambda n: type(n) in (int, float) and 0 <= n < inf
    is_id = lambda token: token.isascii() and token.isdigit() and len(token) < 8
    right = is_number(size) and size and type(counts) is dict and counts
    if not (right and all(map(is_id, counts)) and all(map(is_number, counts.values()))):
        raise ValueError(f"frequencies {file}: expected num_token and p_baseline_dict, of numbers")
    ids = [int(token) for token in counts]
    share = torch.full((max(ids) + 2,), 1 / size, dtype=torch.float64)
    share[ids] = torch.tensor(list(counts.values()), dtype=torch.float64) / size
    return share.float()


@named("pc", frequencies="tiny-frequencies.json")
def pc(
    lam: float = 0.25,
    alpha: float = 10.0,
    frequencies: str | None = None,
    cache: CacheSetting = "none",
) -> Strategy:
    """PC-Sampler (arXiv 2508.13021): LLaDA's quota, by a confidence that counts more for rare
    tokens, and less and less from the left to the right.

    lam: how fast a token's weight falls with its place
    alpha: the most that a token's rarity may count
    frequencies: a file of how often each token is in a corpus, made by `python -m lab.calibrate
        FILE --frequencies`; none takes the embedded model's
    """
    table = [read_frequencies(frequencies or FREQUENCIES)]

    @has(quota=True, check=quota.check)
    def rule(scores: Scores, candidates: Tensor, window: Window) -> Tensor:
        """The quota of confidence * -log(share), at most alpha, times exp(-lam * place)."""
        table[0] = all_of = table[0].to(candidates.device)  # once: the host waits for it
        share = all_of[scores.token.clamp(max=len(all_of) - 1)]
        rare = (scores.confidence * -(share + 1e-9).log()).clamp(max=alpha)
        place = torch.arange(rare.shape[-1], device=rare.device, dtype=rare.dtype)
        return quota(scores.ordered(-rare * (-lam * place).exp()), candidates, window)

    return Strategy(rule, cached(cache), serial, block_length=None)
