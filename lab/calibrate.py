"""Which drafts come true most often: `python -m lab.calibrate graph.json`, for spiffy.

And which layers a draft can do without: `python -m lab.calibrate --layers 2`, for swift; and how
often each token is in answers: `python -m lab.calibrate table.json --frequencies`, for pc.

A draft says: fill the i-th surest masks with their j-th likeliest tokens. Here decodes without
drafts are watched, and for every canvas it is written down which draft, made from the logits of the
forward before, would have been the next canvas, the one after it, and so on.

Left out on purpose: all of them while decoding. Papers: Spiffy (arXiv 2509.18085), SWIFT
(2410.06916), PC-Sampler (2508.13021).
"""

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dllm import Step, decode
from lab.command_line import TINY, Parser, encode, use_threads
from lab.files import write
from lab.report import replace_file
from lab.tasks import problems
from load_weights import load_config, load_model, load_tokenizer
from model import LLaDA, Pass
from strategies import rank, require

FURTHEST = 4  # commits ahead that are counted
Node = frozenset  # of (i, j): a draft
State = tuple[Tensor, slice, Tensor]  # a canvas [S], a block partly masked, what it held in the end


def blocks_of(steps: Iterable[Step]) -> list[list[tuple[Tensor, Tensor, slice]]]:
    """What each block of one row went through: canvases [S], its logits [k, V], and its slots."""
    found = defaultdict(list)
    for step in steps:
        block = slice(step.window.start, step.window.end)
        found[block.start].append((step.x[0].clone(), step.logits[0].clone(), block))
    return list(found.values())


# --- drafts --------------------------------------------------------------------------------------


def observed(before: Tensor, logits: Tensor, after: Tensor, mask_id: int) -> Node:
    """The draft that makes a block, int64 [k], what it is `after`, by the logits [k, V] before."""
    masked = before == mask_id
    place = rank(1 - logits.float().softmax(-1).amax(-1), masked)
    filled = (masked & (after != mask_id)).nonzero()[:, 0]
    choice = (logits[filled] > logits[filled].gather(1, after[filled, None])).sum(-1)
    return frozenset(zip(place[filled].tolist(), choice.tolist()))


def count(steps: Iterable[Step], mask_id: int) -> Counter:
    """How often each (draft, the draft a commit before) was seen in one row; the first has none."""
    seen = Counter()
    for states in blocks_of(steps):
        for t, (x, logits, block) in enumerate(states):
            last = Node()
            for after, _, _ in states[t + 1 : t + 1 + FURTHEST]:
                node = observed(x[block], logits, after[block], mask_id)
                seen[node, last] += 1
                last = node
    return seen


def choose(seen: Counter, nodes: int) -> list[list[tuple[int, int]]]:
    """The most frequent drafts, each of which others, chosen before it, lead to from the canvas."""
    total, chosen = Counter(), [Node()]
    for (node, _), times in seen.items():
        total[node] += times
    often = lambda node: (total[node], [-x for pair in sorted(node) for x in pair])
    near = lambda: {node for node, last in seen if last in chosen and node not in chosen}
    while len(chosen) <= nodes and (reached := near()):
        chosen.append(max(reached, key=often))
    return [sorted(node) for node in chosen[1:]]


# --- layers --------------------------------------------------------------------------------------


def halfway(steps: Iterable[Step]) -> list[State]:
    """The canvas in the middle of each block of a decode of one row."""
    found = []
    for states in blocks_of(steps):
        if len(states) > 1:
            x, _, block = states[len(states) // 2 - 1]
            found.append((x, block, states[-1][0][block]))
    return found


def reproduced(model: LLaDA, states: list[State], skip: tuple[int, ...]) -> float:
    """The share of masks for which the network without these layers prefers what came there."""
    right = []
    for x, block, final in states:
        masked = x[block] == model.config.mask_token_id
        token = model(x[None], Pass(rows=block, skip=skip))[0].argmax(-1)
        right.append((token == final)[masked])
    return torch.cat(right).float().mean().item()


def search(model: LLaDA, states: list[State], layers: int) -> tuple[tuple[int, ...], float]:
    """The best of 1,000 random sets of inner layers, and what it reproduces (SWIFT's search)."""
    inner, draw = range(1, model.config.n_layers - 1), random.Random(0)
    sets = sorted({tuple(sorted(draw.sample(inner, layers))) for _ in range(1000)})
    found = {skip: reproduced(model, states, skip) for skip in tqdm(sets, leave=False)}
    return max(found.items(), key=lambda pair: pair[1])


# --- tokens --------------------------------------------------------------------------------------


def frequencies(model: str, limit: int) -> dict:
    """How often each token is in so many answers, each with one EOS, as PC-Sampler's files are."""
    tokenizer, eos = load_tokenizer(model), load_config(model).eos_token_id
    answers = [problem.answer for problem in islice(problems("calibration"), limit)]
    seen = Counter(token for text in answers for token in [*tokenizer.encode(text), eos])
    return {"num_token": seen.total(), "p_baseline_dict": dict(sorted(seen.items()))}


def calibrate(args: argparse.Namespace) -> None:
    for name in ("nodes", "limit"):
        require(getattr(args, name) >= 1, name, getattr(args, name), "at least 1")
    require((args.out is None) == bool(args.layers), "out", args.out, "a file, or --layers N")
    out = Path(args.out or ".").absolute()
    require(out.parent.is_dir(), "out", args.out, "a file in a folder that is there")
    require(not (args.frequencies and args.layers), "layers", args.layers, "none for --frequencies")
    if args.frequencies:
        replace_file(out, json.dumps(found := frequencies(args.model, args.limit)) + "\n")
        return print(f"wrote {args.out}: {found['num_token']} tokens counted", file=sys.stderr)
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    use_threads(model)
    inner = model.config.n_layers - 2  # the first and the last layer stay
    require(0 <= args.layers <= inner, "layers", args.layers, f"1 to {inner}")
    settings = {"cache": "dual", "threshold": args.threshold, "eos": "stop"}
    seen, states = Counter(), []
    for problem in tqdm(list(islice(problems("calibration"), args.limit)), leave=False):
        steps = decode(model, encode(tokenizer, problem.prompt), "fast-dllm", **settings)
        if args.layers:
            states += halfway(steps)
        else:
            seen += count(steps, model.config.mask_token_id)
    if args.layers:
        skip, share = search(model, states, args.layers)
        print(f"{share:.1%} of the tokens without the layers:", file=sys.stderr)
        return write(",".join(map(str, skip)), "list")
    graph = choose(seen, args.nodes)
    replace_file(out, json.dumps(graph) + "\n")
    print(f"wrote {args.out}: {graph}", file=sys.stderr)


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="lab.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", help="the file to write")
    parser.add_argument("--nodes", type=int, default=7, help="drafts to choose (default 7)")
    parser.add_argument("--layers", type=int, default=0, help="leave so many out, and print them")
    parser.add_argument("--frequencies", action="store_true", help="count the tokens of answers")
    parser.add_argument("--limit", type=int, default=40, help="problems to watch (default 40)")
    parser.add_argument("--threshold", type=float, help="of the rule; default one token a forward")
    parser.add_argument("--model", default=str(TINY), help="a folder or a Hugging Face id")
    args = parser.parse_args(arguments)
    try:
        calibrate(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "lab.calibrate: stopped; nothing is written\n")


if __name__ == "__main__":
    main()
