"""Teach a tiny network which tokens of a block are final: `python -m lab.train filter`.

Training problems are decoded twice: once for the reference, and once by the greedy oracle, which
writes whatever the model already has right. Every forward of the second gives a pair: the
confidences of the block, written cells among them, and in which the first choice is the
reference's. The network learns the second from the first, from all pairs at once; the language
model is not touched.

Left out on purpose: resuming. Paper: Learn2PD (arXiv 2509.25188), whose strategy is learn2pd.
Letters: b rows of a batch, N pairs, k block length.
"""

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dllm import decode, plan
from lab.command_line import encode, use_threads
from lab.contenders import with_oracle
from lab.save import save_filter
from lab.tasks import problems
from lab.train import Seed, check_finite
from load_weights import load_model, load_tokenizer
from strategies import STRATEGIES, Count, Share, check_settings, options, require
from strategies.fast_dllm import CacheName

BATCH = 16  # problems that are decoded together
HELD_OUT = 0.1  # share of the pairs, the last, that the filter is only judged by


@dataclass(frozen=True)
class Settings:
    """How a filter is made. Each is a flag of the command line.

    out: file to write
    replace: write it over a file that is there
    model: folder of the language model that the filter is for
    seed: of the problems and the first weights
    limit: training problems to decode
    gen_length: tokens of each answer, up to the block with its EOS
    block_length: tokens a block; the filter will do for no other
    cache: of both decodes, as in fast-dllm; best the one that learn2pd will decode with
    steps: updates in all
    adam: learning rate of Adam
    """

    out: str = "runs/tiny-filter.safetensors"
    replace: bool = False
    model: str = "weights/tiny"
    seed: Seed = 0
    limit: Count = 600
    gen_length: int = 64
    block_length: int = 32
    cache: CacheName = "prefix"
    steps: Count = 2000
    adam: Share = 3e-3

    def __post_init__(self):
        check_settings(Settings, vars(self))
        plan("fast-dllm", self.decoding)

    @property
    def decoding(self) -> dict:
        """Settings of the reference: one token a forward."""
        own = {name: getattr(self, name) for name in ("cache", "gen_length", "block_length")}
        return {"threshold": None, "eos": "stop"} | own


def observe(model, prompts: list[list[int]], decoding: dict) -> Tensor:
    """What the greedy oracle came across, float32 [N, 3, k]: confidences, masks, what was right."""
    reference, known, settings = with_oracle(model, prompts, "fast-dllm", **decoding)
    pairs = []
    for step in decode(model, prompts, known, **settings):
        final = reference.tokens[step.window.live, step.window.start : step.window.end]  # [b, k]
        right = step.scores.token == final
        pair = torch.stack((step.scores.confidence, step.candidates, right), 1)  # [b, 3, k]
        pairs.append(pair[step.candidates.any(-1)].cpu())  # without the rows that wait for others
    return torch.cat(pairs)


@torch.enable_grad()
def fit(pairs: Tensor, s: Settings) -> nn.Sequential:
    """From the confidences of a block, which of its first choices are right, as log-odds."""
    torch.manual_seed(s.seed)
    confidence, _, right = pairs.clone().unbind(1)  # each [N, k]
    k = pairs.shape[-1]
    network = nn.Sequential(nn.Linear(k, k), nn.ReLU(), nn.Linear(k, k))
    optimizer = torch.optim.AdamW(network.parameters(), lr=s.adam)
    for _ in tqdm(range(s.steps), desc="fit", mininterval=1, leave=False):
        F.binary_cross_entropy_with_logits(network(confidence), right).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.requires_grad_(False)


def judge(network: nn.Module, pairs: Tensor, tau: float) -> tuple[float, float, float]:
    """The share of masked cells it accepts; of these, and of as many of the surest, the wrong."""
    confidence, masked, right = pairs.unbind(1)
    masked = masked > 0
    accepted = masked & (network(confidence).sigmoid() > tau)
    surest = confidence[masked].sort(descending=True).indices[: int(accepted.sum())]
    shares = accepted[masked], 1 - right[accepted], 1 - right[masked][surest]
    return tuple(share.float().mean().nan_to_num().item() for share in shares)


def carry_out(s: Settings) -> None:
    """Check all there is to check, then make the filter."""
    out = Path(s.out)
    require(not out.is_dir(), "out", s.out, "a file, not a folder")
    if out.exists() and not s.replace:
        raise ValueError(f"out {out} is there: give another file, or --replace")
    out.parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    model, tokenizer = load_model(s.model), load_tokenizer(s.model)
    use_threads(model)
    prompts = [encode(tokenizer, p.prompt) for p in islice(problems(f"filter/{s.seed}"), s.limit)]
    batches = [prompts[first : first + BATCH] for first in range(0, s.limit, BATCH)]
    bar = tqdm(batches, desc="decode", leave=False)
    pairs = torch.cat([observe(model, batch, s.decoding) for batch in bar])
    trained = int((1 - HELD_OUT) * len(pairs)) or 1
    network = fit(pairs[:trained], s)
    check_finite(network.parameters(), "the training")
    save_filter(list(network.parameters()), s.out)
    tau = options(STRATEGIES["learn2pd"])["tau"].default
    share, wrong, plain = judge(network, pairs[trained:], tau)
    told = f"it accepts {share:.1%} of the masked cells, {wrong:.2%} of them wrongly"
    print(f"learned from {trained} pairs; on the others, at tau {tau:g},", file=sys.stderr)
    print(f"{told}; as many of the surest: {plain:.2%}", file=sys.stderr)
