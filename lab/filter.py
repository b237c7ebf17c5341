"""Teach a tiny network which tokens of a block are final: `python -m lab.train filter`, for `--strategy learn2pd`.

Training problems are decoded twice: once for the reference, and once by the greedy oracle, which writes whatever the model already has
right. Every forward of the second gives a pair: the confidences of the block, and which of its masked tokens were the reference's. The
network learns the second from the first, from all pairs at once; the language model is not touched.

Left out on purpose: resuming, which would take as long as starting anew. Paper: Learn2PD (arXiv 2509.25188).

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

from dllm import STRATEGIES, CacheName, decode, plan
from lab.command_line import Parser, use_threads
from lab.compare import encode, with_oracle
from lab.save import save_filter
from lab.tasks import problems
from load_weights import load_model, load_tokenizer
from options import check_kinds, options, require

BATCH = 16  # problems that are decoded together
HELD_OUT = 0.1  # share of the pairs, the last, that the filter is only judged by


@dataclass(frozen=True)
class Settings:
    """How a filter is made. Each is a flag of the command line.

    out: file to write
    model: folder of the language model that the filter is for
    seed: of the problems and the first weights
    limit: training problems to decode
    gen_length: tokens of each answer, up to the block with its EOS
    block_length: tokens a block; the filter will do for no other
    cache: of both decodes, as in fast-dllm; best the one that learn2pd will decode with
    steps: updates in all
    adam: learning rate of Adam
    """

    out: str = "weights/tiny-filter.safetensors"
    model: str = "weights/tiny"
    seed: int = 0
    limit: int = 600
    gen_length: int = 64
    block_length: int = 32
    cache: CacheName = "prefix"
    steps: int = 2000
    adam: float = 3e-3

    def __post_init__(self):
        check_kinds(Settings, vars(self))
        for name in ("limit", "steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("seed", "adam"):
            require(0 <= getattr(self, name) < 2**63, name, getattr(self, name), "0 or more")
        plan("fast-dllm", self.decoding)
        out = Path(self.out).absolute()
        require(out.parent.is_dir() and not out.is_dir(), "out", self.out, "a file in a folder that is there")

    @property
    def decoding(self) -> dict:
        """Settings of the reference: one token a forward."""
        return {"threshold": None, "eos": "stop"} | {name: getattr(self, name) for name in ("cache", "gen_length", "block_length")}


def observe(model, prompts: list[list[int]], decoding: dict) -> Tensor:
    """What the greedy oracle came across: float32 [N, 3, k], confidences, which cells were masks, and which tokens were right."""
    reference, known, settings = with_oracle(model, prompts, "fast-dllm", **decoding)
    pairs = []
    for step in decode(model, prompts, known, **settings):
        final = reference.tokens[step.window.live, step.window.start : step.window.end]  # [b, k]
        pair = torch.stack((step.scores.confidence, step.candidates, step.scores.token == final), 1)  # [b, 3, k]
        pairs.append(pair[step.candidates.any(-1)].cpu())  # without the rows that wait for others
    return torch.cat(pairs)


@torch.enable_grad()
def fit(pairs: Tensor, s: Settings) -> nn.Sequential:
    """Two layers that say from the confidences, 1 where a token is written, which masked cells hold the right token, as log-odds."""
    torch.manual_seed(s.seed)
    confidence, masked, right = pairs.clone().unbind(1)  # each [N, k]
    seen, k = torch.where(masked > 0, confidence, 1.0), pairs.shape[-1]
    network = nn.Sequential(nn.Linear(k, k), nn.ReLU(), nn.Linear(k, k))
    optimizer = torch.optim.AdamW(network.parameters(), lr=s.adam)
    for step in (bar := tqdm(range(s.steps), desc="fit", mininterval=1, leave=False)):
        loss = F.binary_cross_entropy_with_logits(network(seen), right, masked, reduction="sum") / masked.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    return network.requires_grad_(False)


def judge(network: nn.Module, pairs: Tensor, tau: float) -> tuple[float, float, float]:
    """The share of masked cells that the filter accepts, that of wrong ones among these, and among as many of the highest confidence."""
    confidence, masked, right = pairs.unbind(1)
    masked, right = masked > 0, right > 0
    accepted = masked & (network(torch.where(masked, confidence, 1.0)).sigmoid() > tau)
    surest = confidence[masked].sort(descending=True).indices[: int(accepted.sum())]
    wrong, plain = ((~r).float().mean().nan_to_num().item() for r in (right[accepted], right[masked][surest]))
    return accepted.sum().item() / max(1, int(masked.sum())), wrong, plain


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="lab.train filter", description=__doc__.splitlines()[0], allow_abbrev=False)
    for option in options(Settings).values():
        parser.add_option(option, f" (default {option.default})")
    try:
        s = Settings(**vars(parser.parse_args(arguments)))
        model, tokenizer = load_model(s.model), load_tokenizer(s.model)
        use_threads(model)
        prompts = encode(tokenizer, list(islice(problems(f"filter/{s.seed}"), s.limit)))
        batches = [prompts[first : first + BATCH] for first in range(0, s.limit, BATCH)]
        pairs = torch.cat([observe(model, batch, s.decoding) for batch in tqdm(batches, desc="decode", leave=False)])
    except ValueError as error:
        parser.error(str(error))
    trained = int((1 - HELD_OUT) * len(pairs)) or 1
    network = fit(pairs[:trained], s)
    save_filter(list(network.parameters()), s.out)
    tau = options(STRATEGIES["learn2pd"])["tau"].default
    share, wrong, plain = judge(network, pairs[trained:], tau)
    print(f"wrote {s.out}, from {trained} pairs; on {len(pairs) - trained} others, at tau {tau:g},", file=sys.stderr)
    print(f"it accepts {share:.1%} of the masked cells, {wrong:.2%} of them wrongly; as many of the surest: {plain:.2%}", file=sys.stderr)
