"""Train the tiny model: `python -m lab.train`.

Every answer token is supervised first, then LLaDA's masked-diffusion objective takes over:

1. Two streams, block length 1: the clean answer is read causally, and a second copy of it, all
   masks, predicts each token from the clean ones before it. Every token is supervised in every
   pass, and predictions sit at their own position, as LLaDA needs (no shift).
2. The blocks of the second stream grow (2, 4, 8, 16) and are masked at random.
3. One stream, full attention, LLaDA's loss; then canvases with a long tail of EOS, most examples
   masked as decoding in blocks sees them.
4. A polish at a low learning rate: a tail behind every answer, on whose canvas a model would else
   learn to fill what there is, and more of the tasks that are hard.

Left out on purpose: mixed-precision scaling, several machines, logging services, and data on disk:
a batch is a pure function of (seed, step). Papers: two-stream block diffusion (arXiv 2503.09573)
and NBDiff for 1 and 2, LLaDA (2502.09992) for 3.

Letters: B examples, P prompt length, A answer length with its EOS, V vocabulary; lengths in tokens.
"""

import importlib
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Annotated

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW, Muon, Optimizer
from tqdm import tqdm

from lab.command_line import Parser
from lab.files import locked, replacing, sweep
from lab.save import save_model, write_tensors
from lab.tasks import Problem, Random, problems
from lab.tokenizer import EOS, MASK, ROUND, build, chat, save_tokenizer
from load_weights import check_memory, load_config
from model import Config, LLaDA, Pass
from strategies import Count, Share, check_settings, options, require
from strategies.blocks import Context, context_mask

# files of this folder, which `python -m lab.train KIND` runs
KINDS = ("ar", "blocks", "card", "d2f", "filter", "finetune", "grpo", "r2ft", "rcd", "trajectory")
CHECKPOINT = "checkpoint.safetensors"
LOWER = "lower adam, or muon where there is one, and begin another run"
Seed = Annotated[int, (0, 2**32)]


@dataclass(frozen=True)
class Run:
    """What every kind of training is told. Each is a flag of the command line.

    A kind adds begin(), a module, of which what requires a gradient is trained, and its optimizers;
    loss(step, module, batch, rng), the sum over the examples and the counts of masked and of right
    tokens; rate(step), a share of the optimizers' learning rates; save(module); and check(), if it
    starts from files.

    out: folder for the finished weights
    run: folder for the checkpoint that a killed training resumes from
    replace: write them over weights that `out` holds already
    seed: of the first weights, the data and the masks
    steps: updates in all
    batch: problems a step, over all processes
    adam: peak learning rate of Adam
    warmup: steps until the learning rate is at its peak
    polish: share of the steps, the last, with more of what is hard, and a tail behind every answer
    tails: share of the steps before these, the last, with tails behind a quarter; 0: none at all
    save_every: steps between checkpoints
    processes: that share the work, of one thread each
    """

    out: str
    run: str
    replace: bool = False
    seed: Seed = 0
    steps: Count = 1800
    batch: Annotated[int, (1, 2**20)] = 96
    adam: Share = 3e-3
    warmup: Count = 100
    polish: Share = 0.0
    tails: Share = 0.22
    save_every: Count = 50
    processes: Annotated[int, (1, 64)] = 2

    def __post_init__(self):
        check_settings(type(self), vars(self))
        enough = f"at least one problem for each of {self.processes} processes"
        require(self.batch >= self.processes, "batch", self.batch, enough)

    @property
    def main_steps(self) -> int:
        """Those before the polish."""
        return self.steps - round(self.polish * self.steps)

    def has_tails(self, step: int) -> bool:
        return self.tails > 0 and step >= (1 - self.tails) * self.main_steps

    def problems(self, step: int) -> Iterator[Problem]:
        """Those of a step, without end."""
        return problems(f"train/{self.seed}/{step}", polish=step >= self.main_steps)

    def check(self) -> None:
        """Raise what is wrong with the files that it starts from."""

    def recipe(self) -> dict:
        """What must not change when a run is resumed."""
        free = ("out", "run", "replace", "save_every", "compile")
        return {name: value for name, value in vars(self).items() if name not in free}


@dataclass(frozen=True)
class Network(Run):
    """A model trained from nothing: the tiny model and its twin get the same problems in each step.

    width: of the model
    layers: of the model
    heads: of attention; they share the width
    ffn: width of the feed-forward layers
    muon: peak learning rate of the layers' matrices, a root mean square per step
    flat: share of the steps, without the polish, before the learning rate falls, linearly, to 0
    compile: fuse the layers: 6.3k instead of 3.8k tokens/s a core, after 90 s of warm-up
    """

    steps: Count = 2850
    polish: Share = 9 / 19
    width: Annotated[int, (2, 2**14)] = 192
    layers: Annotated[int, (1, 256)] = 6
    heads: Count = 3
    ffn: Annotated[int, (1, 2**16)] = 512
    muon: Share = 2e-3
    flat: Share = 0.43
    compile: bool = True

    def __post_init__(self):
        super().__post_init__()
        require(self.main_steps > 0, "polish", self.polish, "less than 1: what is there to polish?")
        require(self.flat < 1, "flat", self.flat, "less than 1")
        even = f"a number that divides width {self.width} into even head widths"
        require(self.width % (2 * self.heads) == 0, "heads", self.heads, even)

    def begin(self) -> tuple[LLaDA, list[Optimizer]]:
        """Muon for the matrices inside the blocks, Adam for the rest."""
        model = new_model(self)
        inside = [p for p in model.blocks.parameters() if p.ndim == 2]
        rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "blocks" not in name]
        if self.compile:
            for block in model.blocks:  # one block's code for all: a quarter of the model's time
                block.compile(dynamic=True)
        muon = Muon(inside, lr=self.muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return model, [muon, AdamW(rest, lr=self.adam, betas=(0.9, 0.95), weight_decay=0.0)]

    def rate(self, step: int) -> float:
        """Up over the warm-up, flat, then linearly down to 0; the polish starts again at 0.3."""
        main = self.main_steps
        if step >= main:
            return 0.3 * (self.steps - step) / (self.steps - main)
        return min(1.0, (step + 1) / self.warmup, (main - step) / (main * (1 - self.flat)))

    def save(self, model: LLaDA) -> None:
        save_model(model, self.out, torch.bfloat16)  # first what needs the most room
        save_tokenizer(self.out)


@dataclass(frozen=True)
class Settings(Network):
    """The tiny model.

    dense: share of the steps, without the polish, at block length 1
    growing: share of them at block lengths 2, 4, 8 and 16, a quarter each; then full attention
    least: smallest masking ratio; its inverse weighs the loss: at 0 one example would drown a batch
    """

    out: str = "runs/tiny/weights"
    run: str = "runs/tiny"
    dense: Share = 0.30
    growing: Share = 0.13
    least: Share = 0.15

    def __post_init__(self):
        super().__post_init__()
        room = f"more than 0 and, with dense {self.dense}, less than {1 - self.dense:g}"
        require(0 < self.growing < 1 - self.dense, "growing", self.growing, room)
        require(0 < self.least <= 1, "least", self.least, "more than 0 and at most 1")

    def block_length(self, step: int) -> int | None:
        """Of the two-stream pass; None once the model is trained with full attention."""
        done = step / self.main_steps - self.dense
        if done < 0:
            return 1
        return 2 ** (1 + int(4 * done / self.growing)) if done < self.growing else None

    def loss(self, step: int, model: LLaDA, batch: "Batch", rng) -> tuple[Tensor, Tensor]:
        if block := self.block_length(step):
            return two_stream_loss(model, batch, block, self.least, rng)
        return diffusion_loss(model, batch, self.least, self.has_tails(step), rng)


END = 1 / 8  # what an answer's last sign and EOS weigh at least: one decision among a hundred
GROUP = 24  # examples computed together, at most


@dataclass(frozen=True)
class Batch:
    prompt: Tensor  # int64 [B, P], left-padded
    start: Tensor  # int64 [B], the first real position of each prompt
    answer: Tensor  # int64 [B, A], filled with EOS
    weight: Tensor  # float32 [B, A]: 1 / length for each token, and for all EOS behind together


def collate(pairs: list[tuple[list[int], list[int]]], length: int, eos: int) -> Batch:
    P = max(len(prompt) for prompt, _ in pairs)
    start = [P - len(prompt) for prompt, _ in pairs]
    prompt = torch.tensor([[eos] * pad + prompt for pad, (prompt, _) in zip(start, pairs)])
    answer = torch.tensor([answer + [eos] * (length - len(answer)) for _, answer in pairs])
    own = torch.tensor([len(answer) for _, answer in pairs])[:, None]  # [B, 1]
    return Batch(prompt, torch.tensor(start), answer, weigh(own, length))


def weigh(own: Tensor, length: int) -> Tensor:
    """What each token of answers of `own` tokens, int64 [B, 1], weighs among `length`: [B, A]."""
    place = torch.arange(length)
    weight = torch.where(place < own, 1.0, 1 / (length - own).clamp(min=1)) / own
    return torch.where((place < own) & (place >= own - 2), weight.clamp(min=END), weight)


def batches(s: Run, step: int, rank: int) -> list[Batch]:
    """The examples of one step that fall to one process, in groups of similar length."""
    tails, polished, tokenizer = s.has_tails(step), step >= s.main_steps, build()
    chosen = list(islice(s.problems(step), s.batch))
    texts = [chat(problem.prompt) for problem in chosen] + [p.answer + EOS for p in chosen]
    ids = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    pairs = zip(ids[: s.batch], ids[s.batch :])
    pairs = sorted(pairs, key=lambda pair: (len(pair[1]), len(pair[0])))
    groups: list[list] = []
    for pair in pairs[rank :: s.processes]:
        if not groups or len(groups[-1]) == GROUP or len(pair[1]) > 1.5 * len(groups[-1][0][1]):
            groups.append([])
        groups[-1].append(pair)
    rng, collated = Random(f"length/{s.seed}/{step}/{rank}"), []
    for group in groups:
        longest = len(group[-1][1])
        if tails and rng.random() < (0.1 if polished else 0.25):
            length = max(longest + 8, round(32 * 2 ** rng.uniform(0, 4)))
        else:
            length = longest + (rng.randint(8, 64) if tails and polished else rng.randint(0, 4))
        collated.append(collate(group, length, tokenizer.token_to_id(EOS)))
    return collated


def check_tokens(setting: str, source: str) -> None:
    """Refuse a model, which this setting names, that was not made for the problems' tokens."""
    config, tokenizer = load_config(source), build()
    ours = tokenizer.get_vocab_size(), *map(tokenizer.token_to_id, (MASK, EOS))
    theirs = config.vocab_size, config.mask_token_id, config.eos_token_id
    what = "a model of this program's tokens, as weights/tiny is"
    require(ours[0] <= theirs[0] and ours[1:] == theirs[1:], setting, source, what)


# ---- Objectives. Each returns what score() does.


def two_stream_mask(
    P: int, A: int, block: int, context: Context = "token", copies: int = 1
) -> Tensor:
    """Who sees whom: bool [P + A + copies * A] twice, prompt and clean answer, then noisy copies.

    Prompt and clean tokens see each other as `context` says; by default the prompt sees itself, a
    clean token the prompt and the clean ones up to itself. A noisy token sees the prompt, the clean
    tokens of earlier blocks and its own block of its own copy. P = 1, A = 2, block = 1:

              p a b a' b'
        p     1 . . .  .
        a     1 1 . .  .
        b     1 1 1 .  .
        a'    1 . . 1  .
        b'    1 1 . .  1
    """
    clean = context_mask(P, block, context, 0, P + A)  # [P + A, P + A]
    number = torch.arange(A) // block  # [A], the block of each
    before = torch.cat((torch.full((P,), -1), number)) < number[:, None]  # [A, P + A]
    own = torch.eye(copies).kron((number == number[:, None]).float()).bool()
    noisy = torch.cat((before.repeat(copies, 1), own), 1)
    return torch.cat((F.pad(clean, (0, copies * A)), noisy))


def two_stream_loss(model: LLaDA, batch: Batch, block: int, least: float, rng) -> tuple:
    """Predict the masked tokens of the second stream: all of them, or at a ratio for each block."""
    (B, P), A = batch.prompt.shape, batch.answer.shape[1]
    ratio = torch.ones(B, A)
    if block > 1:
        of_block = torch.rand(B, math.ceil(A / block), generator=rng) * (1 - least) + least
        ratio = of_block.repeat_interleave(block, 1)[:, :A]
    masked = torch.rand(B, A, generator=rng) < ratio
    noisy = batch.answer.masked_fill(masked, model.config.mask_token_id)
    ids = torch.cat((batch.prompt, batch.answer, noisy), 1)  # [B, P + 2A]
    positions = torch.cat((torch.arange(P + A), torch.arange(P, P + A)))
    at = Pass(positions, mask=two_stream_mask(P, A, block), rows=slice(P + A, P + 2 * A))
    logits = model(ids, at, start=batch.start)  # [B, A, V]
    return score(logits, batch, masked, ratio)


def diffusion_loss(
    model: LLaDA, batch: Batch, least: float, as_decoded: bool, rng, eos_masked: bool = False
) -> tuple:
    """LLaDA's SFT objective: mask each answer token at a ratio, predict the masked ones.

    eos_masked: every EOS is a mask, and predicted, in each example, as dLLM-Var trains
    """
    (B, P), A = batch.prompt.shape, batch.answer.shape[1]
    ratio, hidden, scored = draw_masks(B, A, least, as_decoded, rng)
    ends = batch.answer == model.config.eos_token_id
    if eos_masked:
        ratio, hidden, scored = ratio.masked_fill(ends, 1.0), hidden | ends, scored | ends
    elif as_decoded:  # in half of them no EOS is in sight: it would tell where the answer ends
        hidden = hidden | ends & (torch.rand(B, 1, generator=rng) < 0.5)
    noisy = batch.answer.masked_fill(hidden, model.config.mask_token_id)
    ids = torch.cat((batch.prompt, noisy), 1)  # [B, P + A]
    logits = model(ids, Pass(rows=slice(P, P + A)), start=batch.start)  # [B, A, V]
    return score(logits, batch, scored, ratio)


def draw_masks(B: int, A: int, least: float, as_decoded: bool, rng) -> tuple:
    """Draw each token's masking ratio, which are masks, and which of these are scored: [B, A] each.

    as_decoded: three quarters of the examples are masked as decoding in blocks sees them: the
    blocks before a random one are clean, those behind it are all masks and not scored, because
    nothing there is committed yet. A third of these have random masks in the open block, the others
    none up to a random place and nothing but masks behind, as when written from left to right.
    """
    t = (torch.arange(B) + torch.rand(B, generator=rng)) / B  # every batch has small and large ones
    ratio = (t[torch.randperm(B, generator=rng)] * (1 - least) + least)[:, None].expand(B, A)
    masked = torch.rand(B, A, generator=rng) < ratio
    if not as_decoded:
        return ratio, masked, masked
    length = 8 * 2 ** torch.randint(4, (B, 1), generator=rng)  # 8, 16, 32 or 64 tokens a block
    place, block = torch.arange(A) % length, torch.arange(A) // length  # [B, A]
    active = (torch.rand(B, 1, generator=rng) * (block[:, -1:] + 1)).long()
    kind = torch.randint(4, (B, 1), generator=rng)  # 0 all over, 1 in blocks, 2, 3 left to right
    behind = place >= torch.rand(B, 1, generator=rng) * length
    opened = (block == active) & torch.where(kind < 2, masked, behind)
    scored = torch.where(kind == 0, masked, opened)
    hidden = scored | (kind > 0) & (block > active)
    return torch.where(kind < 2, ratio, 0.5), hidden, scored  # half a block is behind, on average


def score(logits: Tensor, batch: Batch, masked: Tensor, ratio: Tensor | float) -> tuple:
    """The loss, and how many tokens were masked and how many of these are predicted: int64 [2].

    Sum over examples of sum over masked of weight * CE / ratio: LLaDA, algorithm 2, reweighed.
    There every token of the padded answer weighs 1 / A. Behind a short answer on a long canvas
    that is a loss about EOS. Here the EOS behind it count as one token, and its end as END.
    """
    flat = logits.float().flatten(0, 1), batch.answer.flatten()
    entropy = F.cross_entropy(*flat, reduction="none").view_as(batch.answer)
    right = (logits.argmax(-1) == batch.answer) & masked
    loss = (entropy * batch.weight * masked / ratio).sum()
    return loss, torch.stack((masked.sum(), right.sum()))


def new_model(s: Network) -> LLaDA:
    torch.manual_seed(s.seed)
    tokenizer = build()
    mask, eos = tokenizer.token_to_id(MASK), tokenizer.token_to_id(EOS)
    vocabulary = math.ceil(tokenizer.get_vocab_size() / ROUND) * ROUND
    config = Config(s.width, s.layers, s.heads, s.ffn, vocabulary, mask, eos)
    with torch.device("meta"):
        size = sum(p.numel() for p in LLaDA(config).parameters())
    check_memory("weights, gradients and momenta", 16 * size, torch.device("cpu"))
    model = LLaDA(config)
    features = 0.04 * torch.randn(50, s.width)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                std = 0.1 if name.startswith("wte") else 0.5 * p.shape[1] ** -0.5
                if name.endswith(("attn_out.weight", "ff_out.weight")):
                    std *= (2 * s.layers) ** -0.5  # what is added to the residual stream
                p.normal_(std=std)
        for token, index in tokenizer.get_vocab().items():
            if (number := token.removeprefix("Ġ")).isdecimal():  # 37 and 38 begin alike
                model.wte.weight[index].mul_(0.1).add_(number_features(int(number)) @ features)
        model.ff_out.weight.copy_(0.2 * model.wte.weight)  # untied, but it starts where that points
    return model


def number_features(n: int) -> Tensor:
    """Digits one-hot and waves, as larger models come to hold numbers (arXiv 2406.03445): [50]."""
    digits = F.one_hot(torch.tensor([n // 100, n // 10 % 10, n % 10]), 10).flatten().float()
    angle = 2 * math.pi * n / torch.tensor([2.0, 5, 10, 20, 50, 100, 200, 400, 800, 1600])
    return torch.cat((digits, angle.cos() * 0.55, angle.sin() * 0.55))


def trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def state(module: nn.Module, opts: list[Optimizer]) -> dict[str, Tensor]:
    """All that a step changes, by name: not copies, so that it can be read and written here."""
    tensors = {f"model/{name}": p.detach() for name, p in trained(module).items()}
    for number, opt in enumerate(opts):
        for i, kept in opt.state_dict()["state"].items():
            tensors |= {f"{number}/{i}/{name}": value for name, value in kept.items()}
    return tensors


def check_finite(tensors: Iterable[Tensor], after: str) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError(f"after {after} not all weights are finite: {LOWER}")


def save_checkpoint(s: Run, step: int, module: nn.Module, opts: list[Optimizer]) -> None:
    """Write what training goes on from: a kill leaves the old state or the new one."""
    tensors, notes = state(module, opts), {"step": str(step), "out": os.path.abspath(s.out)}
    check_finite(tensors.values(), f"step {step}")
    Path(s.run).mkdir(parents=True, exist_ok=True)
    with replacing(Path(s.run, CHECKPOINT)) as place:
        write_tensors(tensors, place, notes | {"recipe": json.dumps(s.recipe())})


def read_checkpoint(s: Run) -> tuple[int, dict[str, Tensor]]:
    """The steps and tensors of a killed run, if there is one.

    Raises ValueError if its recipe differs, or if the weights in `out` are of another run and not
    to be replaced.
    """
    file, out = Path(s.run, CHECKPOINT), Path(s.out)
    notes, step, tensors, saved = {}, 0, {}, s.recipe()
    if file.exists():
        try:
            with safe_open(file, "pt") as f:
                notes, tensors = f.metadata(), {name: f.get_tensor(name) for name in f.keys()}
            step, saved = int(notes["step"]), dict(json.loads(notes["recipe"]))
            require(0 < step <= saved["steps"], "step", step, "one of its steps")
        except (SafetensorError, OSError, TypeError, KeyError, ValueError, RecursionError):
            raise ValueError(f"{file} is no checkpoint of this program") from None
    for name, value in s.recipe().items():
        if saved.get(name) != value:
            other = f"{file} was made with {saved.get(name)!r:.60}"
            raise ValueError(f"{name} is {value}, but {other}: give the same, or another run")
    weights = [each for each in out.glob("*.safetensors") if each.name != CHECKPOINT]
    if weights and not s.replace and notes.get("out") != os.path.abspath(out):
        raise ValueError(f"out {out} holds weights: give another folder, or --replace")
    return step, tensors


def begin(s: Run) -> tuple[nn.Module, list[Optimizer], int]:
    """A module and its optimizers as they are after so many steps: those of the checkpoint."""
    torch.set_num_threads(1)
    (module, opts), (step, tensors) = s.begin(), read_checkpoint(s)
    if not step:
        return module, opts, step
    for opt in opts:  # a step of no length: then what an optimizer keeps is there, by its names
        for group in opt.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        opt.step()
        opt.zero_grad()
    expected, file = state(module, opts), Path(s.run, CHECKPOINT)
    if odd := expected.keys() ^ tensors.keys():
        raise ValueError(f"{file} is damaged: {min(odd)!r:.60} is missing or too much")
    with torch.no_grad():
        for name, value in expected.items():
            found = tensors[name]
            if (found.shape, found.dtype) != (value.shape, value.dtype):
                raise ValueError(f"{file} is damaged: {name} is of another shape or type")
            if not found.isfinite().all():
                raise ValueError(f"{file} is damaged: {name} is not finite")
            value.copy_(found)
    return module, opts, step


@contextmanager
def patience(rank: int) -> Iterator[list]:
    """Ctrl-C waits for the end of a step, in the list that this yields; a second one does not."""
    asked = []

    def ask(*_) -> None:
        asked.append("stop")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN if rank else ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def train(s: Run, rank: int = 0, begun: tuple | None = None) -> nn.Module:
    """Train to the last step, from the checkpoint if there is one. Only process 0 writes.

    begun: what begin() has returned
    """
    module, opts, first = begun or begin(s)
    bar = tqdm(range(first, s.steps), initial=first, total=s.steps, disable=rank > 0, mininterval=5)
    with patience(rank) as asked:
        for step in bar:
            loss, masked, right = train_step(s, step, rank, module, opts).tolist()
            bar.set_postfix_str(
                f"loss {loss:.3f}, right {right / max(1, masked):.1%}", refresh=False
            )
            done = step + 1
            # the first steps often, so that what is wrong with the folder shows at once
            due = done % s.save_every == 0 or done.bit_count() == 1 or done == s.steps
            if rank == 0 and (due or asked):
                save_checkpoint(s, done, module, opts)
            if asked:
                bar.close()
                raise KeyboardInterrupt(f"step {done}")
    if rank == 0:
        s.save(module)
    return module


def train_step(s: Run, step: int, rank: int, module: nn.Module, opts: list[Optimizer]) -> Tensor:
    """One update, random by (seed, step, process) alone: float32 [loss, masked tokens, right]."""
    rng = torch.Generator().manual_seed((s.seed * 1_000_003 + step) * 64 + rank)
    counts, total, parameters = torch.zeros(2), 0.0, trained(module).values()
    for batch in batches(s, step, rank):
        # Explicit attention: here it beats the flash kernel's backward pass, 4.2k to 2.3k tokens/s.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss, right = s.loss(step, module, batch, rng)
        (loss / s.batch).backward()
        counts, total = counts + right, total + loss.item() / s.batch
    if s.processes > 1:
        for p in parameters:
            dist.all_reduce(p.grad)
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    if not norm.isfinite():  # the sum over all processes: each of them stops here
        raise ValueError(f"in step {step + 1} the loss or its gradient is not finite: {LOWER}")
    for opt in opts:
        opt.param_groups[0]["lr"] = opt.defaults["lr"] * s.rate(step)
        opt.step()
        opt.zero_grad()
    return torch.tensor([total * s.processes, *counts])


def worker(other: int, s: Run, meeting: str, begun: tuple | None = None) -> None:
    rank = other + 1
    if rank:
        tqdm.set_lock(RLock())  # its own is a semaphore, which a process that is stopped leaves
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=s.processes)
    train(s, rank, begun)
    dist.destroy_process_group()


def train_together(s: Run, begun: tuple) -> None:
    """Train in several processes, of which this is the first. None of them outlives it."""
    with tempfile.TemporaryDirectory() as folder:
        given, spawn = (s, f"{folder}/meeting"), torch.multiprocessing.spawn
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the others inherit this
        others = spawn(worker, given, s.processes - 1, join=False, daemon=True)
        signal.signal(signal.SIGINT, before)
        try:
            worker(-1, *given, begun)
            others.join()
        finally:
            for process in others.processes:
                process.terminate()


@contextmanager
def alone(*folders: str) -> Iterator[None]:
    """Make these folders, now, not after an hour, and keep them from other runs."""
    with ExitStack() as stack:
        for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
            sweep(folder)
        yield


def carry_out(s: Run) -> None:
    """Check all there is to check, then train."""
    read_checkpoint(s)
    s.check()
    with alone(s.run, s.out):
        begun = begin(s)  # reads it anew: a run that had the folders may just have ended
        train(s, 0, begun) if s.processes == 1 else train_together(s, begun)


def main(arguments: list[str] | None = None) -> None:
    """What the command line asks for; exit code 2 for anything wrong with it, 130 for Ctrl-C."""
    try:
        command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt as stop:
        kept = f" after {stop}; the same command goes on from there" if str(stop) else ""
        print(f"lab.train: stopped{kept}", file=sys.stderr)
        sys.exit(130)


def command(arguments: list[str]) -> None:
    known = arguments and arguments[0] in KINDS
    kind, *arguments = arguments if known else ["train", *arguments]
    module = importlib.import_module(f"lab.{kind}")
    name = "lab.train" if kind == "train" else f"lab.train {kind}"
    what = module.__doc__.splitlines()[0]
    what += f" Others: `{name} KIND`, {' '.join(KINDS)}." if kind == "train" else ""
    parser = Parser(prog=name, description=what, allow_abbrev=False)
    for option in options(module.Settings).values():
        parser.add_option(option, f" (default {option.default})")
    try:
        s = module.Settings(**vars(parser.parse_args(arguments)))
        (module.carry_out if kind == "filter" else carry_out)(s)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        parser.error(str(error))
    print(f"wrote {s.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
