"""Teach a model of the next token to write blocks: `python -m lab.train blocks`.

Four recipes are switches of one loss; the defaults are NBDiff's:

    SDAR, BD3      --context block --shift 0 --views 1 --next-token 0 --growing 0
    Fast-dLLM v2   --context block --next-token 0 --growing 0
    NBDiff
    WeDLM          --in-order --shift 0 --views 1 --growing 0 --block 16 --whole 0.3

The model reads the prompt and the clean answer once and, behind them, noisy copies of the answer in
blocks. A noisy block sees itself and what is clean before it, which is what decoding in blocks
shows it (strategies/blocks.py); so every block of an answer is trained in one pass.

Left out on purpose: packing of several texts into one; documents, which start their blocks at 0.
Papers: BD3 (arXiv 2503.09573), SDAR (2510.06303), Fast-dLLM v2 (2509.26328), NBDiff (2512.06776),
WeDLM (2512.22737).

Letters: B examples, P prompt length, A answer length in whole blocks, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lab.d2f import TARGETS, adapt, halves
from lab.data import STORIES
from lab.save import save_adapter, save_model
from lab.tasks import Problem, problems
from lab.tokenizer import save_tokenizer
from lab.train import Batch, Run, check_tokens, score, two_stream_mask, weigh
from load_weights import load_config, load_model
from model import LLaDA, Pass
from strategies import Count, Share, require
from strategies.blocks import Context

Rank = Annotated[int, (0, 2**14)]
Length = Annotated[int, (1, 1024)]  # of a block, or a canvas: all of its tokens are read at once
MATRICES = (*TARGETS, "ff_proj", "up_proj", "ff_out")


class WithMask(nn.Module):
    """A frozen table of embeddings plus a row for the mask, which its model has never read."""

    def __init__(self, base: nn.Embedding, mask: int):
        super().__init__()
        self.base, self.mask = base, mask
        self.weight = base.weight  # as elsewhere: the model's device and dtype
        self.row = nn.Parameter(torch.zeros(base.weight.shape[1]))

    def forward(self, ids: Tensor) -> Tensor:
        return self.base(ids) + (ids == self.mask)[..., None] * self.row

    def halves(self, rank: int) -> tuple[Tensor, Tensor]:
        """The row as a LoRA of such a rank whose scale is 1."""
        V, C = self.base.weight.shape
        a, b = torch.zeros(rank, C), torch.zeros(V, rank)
        a[0], b[self.mask, 0] = self.row.detach(), 1
        return a, b


@dataclass(frozen=True)
class Adaptation(Run):
    """What a finished model becomes in a short training.

    start: folder of the model to start from
    adapter: LoRA adapter that is part of it; only all weights can be trained on
    rank: of the LoRA matrices; 0 trains all weights, and writes a model in place of an adapter
    about: stories, or the tasks of the polish in their shares
    """

    steps: Count = 600
    batch: Annotated[int, (1, 2**20)] = 16
    adam: Share = 2e-3
    warmup: Count = 10
    polish: Share = 1.0
    processes: Annotated[int, (1, 64)] = 1
    start: str = "weights/tiny-ar"
    adapter: str | None = None
    rank: Rank = 16
    about: Literal["stories", "all"] = "stories"

    def __post_init__(self):
        super().__post_init__()
        load_config(self.start)
        whole = "0 beside an adapter, which a second one could not be added to"
        require(not (self.rank and self.adapter), "rank", self.rank, whole)

    def check(self) -> None:
        check_tokens("start", self.start)
        self.started()

    def started(self) -> LLaDA:
        """What it starts from, frozen."""
        return load_model(self.start, self.adapter, "cpu", torch.float32)

    def begin(self) -> tuple[nn.Module, list[Optimizer]]:
        model = self.started()
        if self.rank:
            model.wte = WithMask(model.wte, model.config.mask_token_id)
            generator = torch.Generator().manual_seed(self.seed)
            weights = adapt(model, MATRICES, self.rank, self.rank, generator)
        else:
            weights = list(model.requires_grad_().parameters())
        return model, [AdamW(weights, lr=self.adam, betas=(0.9, 0.95), weight_decay=0.0)]

    def problems(self, step: int) -> Iterator[Problem]:
        if self.about == "all":
            return super().problems(step)
        streams = (problems(f"train/{self.seed}/{step}/{task}", task) for task in STORIES)
        return (problem for four in zip(*streams) for problem in four)

    def rate(self, step: int) -> float:
        """As a share of the peak: up over the warm-up, from 0.3 of the steps on down to 0."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (0.7 * self.steps))

    def save(self, model: LLaDA) -> None:
        if not self.rank:
            save_model(model, self.out, torch.bfloat16)
            return save_tokenizer(self.out)
        parts = halves(model) | {"wte": model.wte.halves(self.rank)}
        parts = {name: tuple(half.to(torch.bfloat16) for half in parts[name]) for name in parts}
        save_adapter(parts, self.rank, self.out)


@dataclass(frozen=True)
class Settings(Adaptation):
    """What a model of the next token becomes.

    block: tokens a block
    context: what finished tokens see: their block and before it, what is before them, and the
        prompt all of itself (token), or what is before them alone (causal)
    shift: 1 if the logits of a token stand a slot before it, as those of `start` do
    views: 2 for a second copy in which masked is what is not in the first; 1 for weights 1 / ratio
    next_token: weight of predicting each clean token from those before it
    growing: share of the steps in which blocks grow: 2, 4 .. up to `block`
    least: smallest masking ratio of a single view
    whole: share of the blocks that are masked altogether, as each is when decoding comes to it
    in_order: a noisy token sees only what is before it, where what is masked stands behind the rest
    """

    out: str = "runs/tiny-blocks/weights"
    run: str = "runs/tiny-blocks"
    block: Length = 8
    context: Context = "causal"
    shift: Annotated[int, (0, 1)] = 1
    views: Annotated[int, (1, 2)] = 2
    next_token: Share = 0.5
    growing: Share = 0.5
    least: Share = 0.15
    whole: Share = 0.0
    in_order: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.least <= 1, "least", self.least, "more than 0 and at most 1")

    def length(self, step: int) -> int:
        """Of the blocks in this step. A block of 1 teaches a shifted model nothing: its task is the
        next token."""
        sizes = max(1, (self.block - 1).bit_length())  # 2, 4 .. block
        done = step / (self.growing * self.steps) if self.growing else 1
        return min(self.block, 2 ** (1 + int(done * (sizes - 1)))) if done < 1 else self.block

    def loss(self, step: int, model: LLaDA, batch: Batch, rng) -> tuple[Tensor, Tensor]:
        """With two views each token is scored once among both, and its ratio needs no weight."""
        block, config = self.length(step), model.config
        batch = in_whole_blocks(batch, block, config.eos_token_id)
        (B, P), A = batch.prompt.shape, batch.answer.shape[1]
        least = self.least if self.views == 1 else 0.0
        ratio = torch.rand(B, A // block, generator=rng) * (1 - least) + least
        ratio[torch.rand(B, A // block, generator=rng) < self.whole] = 1.0
        ratio = ratio.repeat_interleave(block, 1)  # [B, A]
        masked = torch.rand(B, A, generator=rng) < ratio
        views = (masked, ~masked)[: self.views]
        noisy = [batch.answer.masked_fill(view, config.mask_token_id) for view in views]
        ids = torch.cat((batch.prompt, batch.answer, *noisy), 1)  # [B, P + A + views * A]
        at = streams(P, A, block, self.context, self.shift, self.views)
        if self.in_order:
            at = at._replace(mask=revealed_first(at.mask, P, views))
        logits = model(ids, at, start=batch.start)  # [B, (1 + views) * A, V]
        of_clean, *of_views = logits.split(A, 1)
        clean = torch.ones_like(masked), 1.0
        loss = self.next_token * score(of_clean, batch, *clean)[0]
        counts = torch.zeros(2)
        for seen, view in zip(of_views, views):
            view = view & (batch.weight > 0)
            own, count = score(seen, batch, view, ratio if self.views == 1 else 1.0)
            loss, counts = loss + own, counts + count
        return loss, counts


def in_whole_blocks(batch: Batch, block: int, eos: int) -> Batch:
    """Answers filled with EOS to whole blocks, of which those behind an answer's last count
    nothing: decoding never opens them."""
    own = (batch.answer != eos).sum(1, keepdim=True) + 1  # [B, 1]
    A = -(-int(own.max()) // block) * block
    answer = F.pad(batch.answer[:, :A], (0, max(0, A - batch.answer.shape[1])), value=eos)
    last = -(-own // block) * block
    weight = weigh(own, A) * (torch.arange(A) < last)
    return Batch(batch.prompt, batch.start, answer, weight)


def revealed_first(mask: Tensor, P: int, views: tuple[Tensor, ...]) -> Tensor:
    """The mask [Q, K] for each example, bool [B, 1, Q, K], in which a token of a noisy copy sees of
    that copy only what comes before it: first what is not masked, bool [B, A] each, then masks."""
    B, A = views[0].shape
    seen = mask.expand(B, 1, -1, -1).clone()
    for copy, view in enumerate(views):
        rank, own = torch.arange(A) + A * view, slice(P + A * (1 + copy), P + A * (2 + copy))
        seen[:, 0, own, own] &= rank[:, :, None] >= rank[:, None]
    return seen


def streams(P: int, A: int, block: int, context: Context, shift: int, views: int) -> Pass:
    """Prompt, clean answer and its noisy copies, and the rows that predict: of the clean answer the
    row before each token; of a copy the token's own or, with a shift, the row before it, which for
    the first of a block is of what is clean, as it is when decoding."""
    place = torch.arange(A)
    positions = torch.cat((torch.arange(P + A), *[torch.arange(P, P + A)] * views))
    rows = [P - 1 + place]
    for copy in range(views):
        own = P + A * (1 + copy) + place - shift
        first = (place % block == 0) & (shift == 1)
        rows.append(torch.where(first, P - 1 + place, own))
    return Pass(positions, mask=two_stream_mask(P, A, block, context, views), rows=torch.cat(rows))
