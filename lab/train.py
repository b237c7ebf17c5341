"""Train the tiny model: `python -m lab.train`; its autoregressive twin, D2F student or filter: `... ar`, `... d2f`, `... filter`.

Every answer token is supervised first, then LLaDA's masked-diffusion objective takes over:

1. Two streams, block length 1: the clean answer is read causally, and a second copy of it, all masks, predicts each token from the clean
   ones before it. Every token is supervised in every pass, and predictions sit at their own position, as LLaDA needs (no shift).
2. The blocks of the second stream grow (2, 4, 8, 16) and are masked at random.
3. One stream, full attention, LLaDA's loss; then canvases with a long tail of EOS, most examples masked as decoding in blocks sees them.
4. A polish at a low learning rate: a tail behind every answer, on whose canvas a model would else learn to fill what
   there is, and more of the tasks that are hard.

Left out on purpose: mixed-precision scaling, several machines, logging services, and data on disk: a batch is a pure
function of (seed, step).

Papers: LLaDA (arXiv 2502.09992), its SFT objective, for 3; two-stream block diffusion (2503.09573) and NBDiff, for 1 and 2.

Letters: B examples, P prompt length, A answer length with its EOS, Q rows computed, V vocabulary; lengths in tokens.
"""

import importlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from lab import bench
from lab.command_line import Parser
from lab.save import save_model
from lab.tasks import Random, problems
from lab.tokenizer import ROUND, build, chat, save_tokenizer
from model import Config, LLaDA, Pass
from options import options, require


@dataclass(frozen=True)
class Run:
    """What every kind of training is told. Each is a flag of the command line.

    out: folder for the finished weights
    run: folder for the checkpoint that a killed training resumes from
    seed: of the first weights, the data and the masks
    steps: updates in all
    batch: problems a step, over all processes
    adam: peak learning rate of Adam
    warmup: steps until the learning rate is at its peak
    polish: share of the steps, the last, with more of what is hard, and a tail of EOS behind every answer, lest a canvas tell its length
    tails: share of the steps before the polish, the last, with long tails of EOS behind a quarter of the answers; 0 for no tails at all
    save_every: steps between checkpoints
    processes: that share the work, of one thread each
    score: held-out problems a task to decode at the end; 0 for none
    """

    out: str
    run: str
    seed: int = 0
    steps: int = 1800
    batch: int = 96
    adam: float = 3e-3
    warmup: int = 100
    polish: float = 0.0
    tails: float = 0.22
    save_every: int = 50
    processes: int = 2
    score: int = 300

    def __post_init__(self):
        for name in ("steps", "batch", "warmup", "save_every", "processes"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("seed", "score", "adam", "tails"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(0 <= self.polish <= 1, "polish", self.polish, "between 0 and 1")
        require(self.batch >= self.processes, "batch", self.batch, f"at least one problem for each of {self.processes} processes")

    @property
    def main_steps(self) -> int:
        """Those before the polish."""
        return self.steps - round(self.polish * self.steps)


@dataclass(frozen=True)
class Network(Run):
    """A model that is trained from nothing: the tiny model and its twin get the same problems in the same steps.

    width: of the model
    layers: of the model
    heads: of attention; they share the width
    ffn: width of the feed-forward layers
    muon: peak learning rate of the matrices inside the layers, as a root mean square per step; the rest is Adam's
    flat: share of the steps, without the polish, before the learning rate falls, linearly, to 0; the polish starts at 0.3 and falls again
    compile: fuse the layers with torch.compile: 6.3k instead of 3.8k tokens/s a core, after 90 s of warm-up
    """

    steps: int = 2850
    polish: float = 9 / 19
    width: int = 192
    layers: int = 6
    heads: int = 3
    ffn: int = 512
    muon: float = 2e-3
    flat: float = 0.43
    compile: bool = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "layers", "heads", "ffn"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.muon >= 0, "muon", self.muon, "0 or more")
        require(self.main_steps > 0, "polish", self.polish, "less than 1: there must be something to polish")
        require(0 <= self.flat < 1, "flat", self.flat, "at least 0 and less than 1")
        require(self.width % (2 * self.heads) == 0, "heads", self.heads, f"a number that divides width {self.width} into even head widths")


@dataclass(frozen=True)
class Settings(Network):
    """The tiny model.

    dense: share of the steps, without the polish, at block length 1
    growing: share of them at block lengths 2, 4, 8 and 16, a quarter each; full attention comes after it
    least: smallest masking ratio of an example; its inverse weighs the loss, so that 0 would let a single example outweigh a batch
    """

    out: str = "weights/tiny"
    run: str = "runs/tiny"
    dense: float = 0.30
    growing: float = 0.13
    least: float = 0.15

    def __post_init__(self):
        super().__post_init__()
        require(self.dense >= 0, "dense", self.dense, "0 or more")
        room = 1 - self.dense
        require(0 < self.growing < room, "growing", self.growing, f"more than 0 and, with dense {self.dense}, less than {room:g}")
        require(0 < self.least <= 1, "least", self.least, "more than 0 and at most 1")


class Job(NamedTuple):
    """What one kind of training is made of, as functions of its settings, so that every process can make its own."""

    settings: type[Run]
    begin: Callable[..., tuple[nn.Module, list[torch.optim.Optimizer]]]  # (settings, tokenizer); what requires a gradient is trained
    loss: Callable[..., tuple[Tensor, Tensor]]  # (settings, step, module, batch, rng) -> sum over examples, counts [masked, right]
    rate: Callable[..., float]  # (settings, step) -> share of the optimizers' peak learning rates
    label: Callable[..., str]  # (settings, step) -> what the progress bar calls this step
    save: Callable[..., list[str]]  # (settings, module): write settings.out; returns how lab.bench finds it


# ---- Schedule


def block_length(s: Settings, step: int) -> int | None:
    """Length of the blocks of the two-stream pass; None once the model is trained with full attention."""
    done = step / s.main_steps - s.dense
    if done < 0:
        return 1
    return 2 ** (1 + int(4 * done / s.growing)) if done < s.growing else None


def learning_rate(s: Network, step: int) -> float:
    """As a share of the peak: up over the warm-up, flat, then linearly down to 0; then the polish."""
    main = s.main_steps
    if step >= main:
        return 0.3 * (s.steps - step) / (s.steps - main)
    return min(1.0, (step + 1) / s.warmup, (main - step) / (main * (1 - s.flat)))


# ---- Data


@dataclass(frozen=True)
class Batch:
    prompt: Tensor  # int64 [B, P], left-padded
    start: Tensor  # int64 [B], the first real position of each prompt
    answer: Tensor  # int64 [B, A], filled with EOS
    weight: Tensor  # float32 [B, A]: 1 over the answer's length for its tokens, at its end END at least; the EOS behind it: one together


def collate(pairs: list[tuple[list[int], list[int]]], length: int, eos: int) -> Batch:
    P = max(len(prompt) for prompt, _ in pairs)
    start = [P - len(prompt) for prompt, _ in pairs]
    prompt = torch.tensor([[eos] * pad + prompt for pad, (prompt, _) in zip(start, pairs)])
    answer = torch.tensor([answer + [eos] * (length - len(answer)) for _, answer in pairs])
    own = torch.tensor([len(answer) for _, answer in pairs])[:, None]  # [B, 1]
    place = torch.arange(length)
    weight = torch.where(place < own, 1.0, 1 / (length - own).clamp(min=1)) / own
    weight = torch.where((place < own) & (place >= own - 2), weight.clamp(min=END), weight)
    return Batch(prompt, torch.tensor(start), answer, weight)


def batches(s: Run, tokenizer, step: int, rank: int) -> list[Batch]:
    """The examples of one step that fall to one process, in groups of similar length, so that little padding is computed."""
    chosen = list(islice(problems(f"train/{s.seed}/{step}", polish=step >= s.main_steps), s.batch))
    encode = lambda texts: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    pairs = list(zip(encode([chat(p.prompt) for p in chosen]), encode([p.answer + "<|endoftext|>" for p in chosen])))
    pairs = sorted(pairs, key=lambda pair: (len(pair[1]), len(pair[0])))[rank :: s.processes]
    rng = Random(f"length/{s.seed}/{step}/{rank}")
    groups: list[list] = []
    for pair in pairs:
        if not groups or len(groups[-1]) == GROUP or len(pair[1]) > 1.5 * len(groups[-1][0][1]):
            groups.append([])
        groups[-1].append(pair)
    collated, tails, polished = [], has_tails(s, step), step >= s.main_steps
    for group in groups:
        longest = len(group[-1][1])
        if tails and rng.random() < (0.1 if polished else 0.25):
            length = max(longest + 8, round(32 * 2 ** rng.uniform(0, 4)))
        elif tails and polished:
            length = longest + rng.randint(8, 64)
        else:
            length = longest + rng.randint(0, 4)
        collated.append(collate(group, length, tokenizer.token_to_id("<|endoftext|>")))
    return collated


def has_tails(s: Run, step: int) -> bool:
    return s.tails > 0 and step >= (1 - s.tails) * s.main_steps


END = 1 / 8  # what the last sign of an answer and its EOS weigh at least: where a long answer ends is one decision among a hundred
GROUP = 24  # examples computed together, at most


# ---- Objectives. Each returns the sum over examples of LLaDA's SFT loss, sum over masked of weight * CE / p.


def two_stream_mask(P: int, A: int, block: int) -> Tensor:
    """Who sees whom: prompt and clean answer [P + A], then the noisy copy of the answer [A]. True where a row may attend to a column.

    The prompt sees itself, a clean token the prompt and the clean ones up to itself, a noisy one the prompt, the clean tokens of earlier
    blocks and its own block of noisy ones. P = 1, A = 2, block = 1:

              p a b a' b'
        p     1 . . .  .
        a     1 1 . .  .
        b     1 1 1 .  .
        a'    1 . . 1  .
        b'    1 1 . .  1
    """
    prompt = torch.full((P,), -1)
    place = torch.cat((prompt, torch.arange(A)))  # [P + A], -1 for every prompt token: they see each other
    clean = place[:, None] >= place  # [P + A, P + A]
    of_block = torch.arange(A) // block
    earlier = torch.cat((prompt, of_block)) < of_block[:, None]  # [A, P + A]
    same = of_block[:, None] == of_block  # [A, A]
    hidden = torch.zeros(P + A, A, dtype=torch.bool)
    return torch.cat((torch.cat((clean, hidden), 1), torch.cat((earlier, same), 1)))  # [P + 2A, P + 2A]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").view_as(target)


def two_stream_loss(model: LLaDA, batch: Batch, block: int, least: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Predict the masked tokens of the second stream. Block length 1 masks all of them; longer blocks are masked at a ratio of their own."""
    (B, P), A = batch.prompt.shape, batch.answer.shape[1]
    ratio = torch.ones(B, A)
    if block > 1:
        of_block = torch.rand(B, math.ceil(A / block), generator=rng) * (1 - least) + least
        ratio = of_block.repeat_interleave(block, 1)[:, :A]
    masked = torch.rand(B, A, generator=rng) < ratio
    noisy = batch.answer.masked_fill(masked, model.config.mask_token_id)
    positions = torch.cat((torch.arange(P + A), torch.arange(P, P + A)))
    ids = torch.cat((batch.prompt, batch.answer, noisy), 1)  # [B, P + 2A]
    noisy_alone = Pass(positions, mask=two_stream_mask(P, A, block), rows=slice(P + A, P + 2 * A))
    logits = model(ids, noisy_alone, start=batch.start)  # [B, A, V]
    return sft_loss(logits, batch, masked, ratio), accuracy(logits, batch.answer, masked)


def diffusion_loss(model: LLaDA, batch: Batch, least: float, as_decoded: bool, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """LLaDA's SFT objective: mask each answer token with the example's own ratio and predict the masked ones from all the rest."""
    (B, P), A = batch.prompt.shape, batch.answer.shape[1]
    ratio, hidden, scored = draw_masks(B, A, least, as_decoded, rng)
    if as_decoded:  # in half of the examples no EOS is in sight: it would tell the place where the answer ends
        hidden = hidden | (torch.rand(B, 1, generator=rng) < 0.5) & (batch.answer == model.config.eos_token_id)
    noisy = batch.answer.masked_fill(hidden, model.config.mask_token_id)
    ids = torch.cat((batch.prompt, noisy), 1)  # [B, P + A]
    logits = model(ids, Pass(torch.arange(P + A), rows=slice(P, P + A)), start=batch.start)  # [B, A, V]
    return sft_loss(logits, batch, scored, ratio), accuracy(logits, batch.answer, scored)


def draw_masks(B: int, A: int, least: float, as_decoded: bool, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the masking ratio of each answer token, which tokens are masks in the input, and which of these are scored: three of [B, A].

    as_decoded: three quarters of the examples are masked as decoding in blocks sees them: the blocks before a random one are clean, those
    behind it are all masks and are not scored, because nothing there is committed yet. A third of these have random masks in the open
    block, the others none up to a random place and nothing but masks behind it, as where an answer is written from left to right.
    """
    t = (torch.arange(B) + torch.rand(B, generator=rng)) / B  # stratified: every batch has small and large ratios
    ratio = (t[torch.randperm(B, generator=rng)] * (1 - least) + least)[:, None].expand(B, A)
    masked = torch.rand(B, A, generator=rng) < ratio
    if not as_decoded:
        return ratio, masked, masked
    length = 8 * 2 ** torch.randint(4, (B, 1), generator=rng)  # 8, 16, 32 or 64 tokens a block
    place, block = torch.arange(A) % length, torch.arange(A) // length  # [B, A]
    active = (torch.rand(B, 1, generator=rng) * (block[:, -1:] + 1)).long()
    kind = torch.randint(4, (B, 1), generator=rng).clamp(max=2)  # 0 all over, 1 in blocks, 2 (half of them) from left to right
    behind = place >= torch.rand(B, 1, generator=rng) * length
    inside = (block == active) & torch.where(kind == 2, behind, masked)
    hidden, scored = (torch.where(kind == 0, masked, cells) for cells in (inside | (block > active), inside))
    return torch.where(kind == 2, 0.5, ratio), hidden, scored  # from a random place on, half of a block is masked on average


def sft_loss(logits: Tensor, batch: Batch, masked: Tensor, ratio: Tensor | float) -> Tensor:
    """Sum over examples of sum over masked of weight * CE / ratio: LLaDA, algorithm 2, with other weights.

    There every token of the padded answer weighs 1 / A. Behind a short answer on a long canvas that is a loss about EOS. Here the EOS
    behind it count as one token together, and the end of a long answer as END (`collate`).
    """
    return (cross_entropy(logits, batch.answer) * batch.weight * masked / ratio).sum()


def accuracy(logits: Tensor, answer: Tensor, masked: Tensor) -> Tensor:
    """How many masked tokens there are, and how many of them are predicted: int64 [2]."""
    return torch.stack((masked.sum(), ((logits.argmax(-1) == answer) & masked).sum()))


# ---- Model and optimizers


def new_model(s: Network, tokenizer) -> LLaDA:
    torch.manual_seed(s.seed)
    vocabulary = math.ceil(tokenizer.get_vocab_size() / ROUND) * ROUND
    mask, eos = tokenizer.token_to_id("<|mdm_mask|>"), tokenizer.token_to_id("<|endoftext|>")
    model = LLaDA(Config(s.width, s.layers, s.heads, s.ffn, vocabulary, mask, eos))
    features = 0.04 * torch.randn(50, s.width)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                out = name.endswith(("attn_out.weight", "ff_out.weight"))  # what is added to the residual stream starts small
                p.normal_(std=0.1 if name.startswith("wte") else 0.5 * p.shape[1] ** -0.5 * ((2 * s.layers) ** -0.5 if out else 1))
        for token, index in tokenizer.get_vocab().items():
            if (number := token.removeprefix("Ġ")).isdecimal():
                model.wte.weight[index].mul_(0.1).add_(number_features(int(number)) @ features)
        model.ff_out.weight.copy_(0.2 * model.wte.weight)  # untied, but a token's row starts where its embedding points
    return model


def number_features(n: int) -> Tensor:
    """What the embedding of a number starts from, so that 37 and 38 begin alike: float32 [50], its three digits one-hot and ten waves of it.

    Larger models come to hold numbers as such waves by themselves (arXiv 2406.03445).
    """
    digits = F.one_hot(torch.tensor([n // 100, n // 10 % 10, n % 10]), 10).flatten().float()
    angle = 2 * math.pi * n / torch.tensor([2.0, 5, 10, 20, 50, 100, 200, 400, 800, 1600])
    return torch.cat((digits, angle.cos() * 0.55, angle.sin() * 0.55))


def optimizers(s: Network, model: LLaDA) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, Adam for the rest."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks")]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or not name.startswith("blocks")]
    return [
        torch.optim.Muon(inside, lr=s.muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=s.adam, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def begin(s: Network, tokenizer) -> tuple[LLaDA, list[torch.optim.Optimizer]]:
    model = new_model(s, tokenizer)
    if s.compile:
        for block in model.blocks:  # one block's code, shared by all: compiling the whole model takes four times as long
            block.compile(dynamic=True)
    return model, optimizers(s, model)


def loss(s: Settings, step: int, model: LLaDA, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    if block := block_length(s, step):
        return two_stream_loss(model, batch, block, s.least, rng)
    return diffusion_loss(model, batch, s.least, has_tails(s, step), rng)


def label(s: Settings, step: int) -> str:
    return f"block {block_length(s, step) or 'full'}"


def save(strategies: str, s: Network, model: LLaDA) -> list[str]:
    save_tokenizer(build(), s.out)
    save_model(model, s.out, torch.bfloat16)
    return ["--model", s.out, "--strategies", strategies]


JOB = Job(Settings, begin, loss, learning_rate, label, partial(save, "llada,fast-dllm"))


# ---- Checkpoints: one safetensors file, so that a kill leaves either the old or the new state and never half of each


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def save_checkpoint(s: Run, step: int, module: nn.Module, opts: list) -> None:
    tensors = {f"model/{name}": p.detach() for name, p in trained(module).items()}
    for o, opt in enumerate(opts):
        for i, state in opt.state_dict()["state"].items():
            tensors |= {f"optimizer/{o}/{i}/{name}": value for name, value in state.items()}
    Path(s.run).mkdir(parents=True, exist_ok=True)
    temporary = Path(s.run, "checkpoint.part")
    save_file(tensors, temporary, {"step": str(step), "settings": json.dumps(recipe(s))})
    os.replace(temporary, Path(s.run, "checkpoint.safetensors"))


def load_checkpoint(s: Run, module: nn.Module, opts: list) -> int:
    """Take up the state of a killed run and return the number of steps it has done: 0, and nothing changed, if there is none."""
    file = Path(s.run, "checkpoint.safetensors")
    if not file.exists():
        return 0
    check_recipe(s)
    with safe_open(file, "pt") as f:
        with torch.no_grad():
            for name, p in trained(module).items():
                p.copy_(f.get_tensor(f"model/{name}"))
        states: list[dict] = [{} for _ in opts]
        for key in f.keys():
            if key.startswith("optimizer"):
                _, o, i, name = key.split("/")
                states[int(o)].setdefault(int(i), {})[name] = f.get_tensor(key)
        for opt, state in zip(opts, states):
            opt.load_state_dict(opt.state_dict() | {"state": state})
        return int(f.metadata()["step"])


def recipe(s: Run) -> dict:
    """What must not change when a run is resumed."""
    return {name: value for name, value in asdict(s).items() if name not in ("out", "run", "save_every", "score", "compile")}


def check_recipe(s: Run) -> None:
    """Raise ValueError if s.run holds the checkpoint of another recipe."""
    file = Path(s.run, "checkpoint.safetensors")
    if file.exists():
        try:
            with safe_open(file, "pt") as f:
                saved = json.loads(f.metadata()["settings"])
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is no checkpoint of this program: {error}") from None
        for name, value in recipe(s).items():
            if saved.get(name) != value:
                raise ValueError(f"{name} is {value}, but {file} was made with {saved.get(name)}: give the same value or another run")


# ---- The loop


def train(s: Run, rank: int = 0, job: Job = JOB) -> nn.Module:
    """Train to the last step, from the checkpoint in s.run if there is one. All processes run this; only the first writes."""
    torch.set_num_threads(1)
    tokenizer = build()
    module, opts = job.begin(s, tokenizer)
    first = load_checkpoint(s, module, opts)
    bar = tqdm(range(first, s.steps), initial=first, total=s.steps, disable=rank > 0, mininterval=5, smoothing=0.02)
    seen = torch.zeros(3)  # loss, masked tokens, right ones, since the last report
    for step in bar:
        seen += train_step(s, step, rank, module, opts, tokenizer, job)
        if (step + 1) % 50 == 0:
            bar.set_postfix_str(f"{job.label(s, step)}, loss {seen[0] / 50:.3f}, right {seen[2] / seen[1]:.1%}", refresh=False)
            seen.zero_()
        if rank == 0 and ((step + 1) % s.save_every == 0 or step + 1 == s.steps):
            save_checkpoint(s, step + 1, module, opts)
    return module


def train_step(s: Run, step: int, rank: int, module: nn.Module, opts: list, tokenizer, job: Job) -> Tensor:
    """One update. Returns float32 [3]: loss, masked tokens, right ones. Its randomness is a function of (seed, step, process)."""
    rng = torch.Generator().manual_seed((s.seed * 1_000_003 + step) * 64 + rank)
    counts, total, parameters = torch.zeros(2), 0.0, trained(module).values()
    for batch in batches(s, tokenizer, step, rank):
        # Explicit attention: at these lengths it beats the flash kernel's backward pass on a CPU, 4.2k to 2.3k tokens/s.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss, right = job.loss(s, step, module, batch, rng)
        (loss / s.batch).backward()
        counts, total = counts + right, total + loss.item() / s.batch
    if s.processes > 1:
        flat = torch.cat([p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = grad.view_as(p)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for opt in opts:
        opt.param_groups[0]["lr"] = opt.defaults["lr"] * job.rate(s, step)
        opt.step()
        opt.zero_grad()
    return torch.tensor([total * s.processes, *counts])


def worker(rank: int, s: Run, job: Job, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=s.processes)
    train(s, rank, job)


def train_together(s: Run, job: Job) -> nn.Module:
    """Run s.processes processes, this one among them. If it is killed, the others stop at their next all-reduce."""
    if s.processes == 1:
        return train(s, 0, job)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        context = torch.multiprocessing.get_context("spawn")
        others = [context.Process(target=worker, args=(rank, s, job, meeting), daemon=True) for rank in range(1, s.processes)]
        for process in others:
            process.start()
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=s.processes)
        module = train(s, 0, job)
        for process in others:
            process.join()
        dist.destroy_process_group()
    return module


# ---- Command line


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    job = JOB
    if arguments[:1] == ["filter"]:  # minutes of another kind, and no Job
        return importlib.import_module("lab.filter").main(arguments[1:])
    if arguments[:1] in (["ar"], ["d2f"]):
        job, arguments = importlib.import_module(f"lab.{arguments[0]}").JOB, arguments[1:]
    parser = Parser(prog="lab.train", description=__doc__.splitlines()[0], allow_abbrev=False)
    for option in options(job.settings).values():
        parser.add_option(option, f" (default {option.default})")
    try:
        s = job.settings(**vars(parser.parse_args(arguments)))
        check_recipe(s)
        Path(s.out).mkdir(parents=True, exist_ok=True)  # now, not after an hour
    except (ValueError, OSError) as error:
        parser.error(str(error))
    where = job.save(s, train_together(s, job))
    print(f"wrote {s.out}", file=sys.stderr)
    if s.score:
        bench.main(["compare", *where, f"--limit={s.score}", "--batch-size=50", "--gen-length=64"])


if __name__ == "__main__":
    main()
