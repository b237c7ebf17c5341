"""Which drafts come true most often: `python -m lab.calibrate graph.json`, for `--strategy spiffy --graph graph.json`; and which layers
a draft can do without: `python -m lab.calibrate --layers 2`, for `--strategy swift --skip` and what that prints.

A draft says: fill the i-th surest masks with their j-th likeliest tokens. Here decodes without drafts are watched, and for every canvas it
is written down which draft, made from the logits of the forward before, would have been the next canvas, the one after it, and so on.

Left out on purpose: pruning drafts, and searching for layers, while decoding. Papers: Spiffy (arXiv 2509.18085), SWIFT (2410.06916).
"""

import json
import random
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dllm import decode, rank
from lab.command_line import TINY, Parser, use_threads
from lab.compare import encode
from lab.report import replace_file
from lab.tasks import problems
from load_weights import load_model, load_tokenizer
from model import LLaDA, Pass
from related import Graph

FURTHEST = 4  # commits ahead that are counted

Node = frozenset  # of (i, j)


def observed(before: Tensor, logits: Tensor, after: Tensor, mask_id: int) -> Node | None:
    """The draft of a block `before`, int64 [k], by the logits [k, V] that its latest tokens were chosen by, which makes it `after`."""
    masked = before == mask_id
    place = rank(1 - logits.float().softmax(-1).amax(-1), masked)
    filled = (masked & (after != mask_id)).nonzero()[:, 0]
    choice = (logits[filled] > logits[filled].gather(1, after[filled, None])).sum(-1)
    return frozenset(zip(place[filled].tolist(), choice.tolist()))


def count(steps, mask_id: int) -> Counter:
    """How often each pair (draft, the draft one commit before it) was seen in a decode of one row; the first has no draft before it."""
    blocks: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for step in steps:
        span = slice(step.window.start, step.window.end)
        blocks.setdefault(step.window.start, []).append((step.x[0, span].clone(), step.logits[0].clone()))
    seen: Counter = Counter()
    for states in blocks.values():
        for t, (before, logits) in enumerate(states):
            last: Node = frozenset()
            for after, _ in states[t + 1 : t + 1 + FURTHEST]:
                node = observed(before, logits, after, mask_id)
                seen[node, last] += 1
                last = node
    return seen


def choose(seen: Counter, nodes: int) -> list[list[tuple[int, int]]]:
    """The most frequent drafts, each of which can be reached from the canvas through others that were chosen before it."""
    total: Counter = Counter()
    for (node, _), times in seen.items():
        total[node] += times
    chosen: list[Node] = [frozenset()]
    while len(chosen) <= nodes:
        reachable = {node for node, last in seen if last in chosen and node not in chosen}
        if not reachable:
            break
        chosen.append(max(reachable, key=lambda node: (total[node], [-x for pair in sorted(node) for x in pair])))
    return [sorted(node) for node in chosen[1:]]


State = tuple[Tensor, slice, Tensor]  # a canvas, int64 [S], a block of it that is partly masked, and what was written there in the end


def halfway(steps) -> list[State]:
    """The canvas in the middle of each block of a decode of one row."""
    blocks: dict[int, list[Tensor]] = {}
    for step in steps:
        blocks.setdefault(step.window.start, []).append(step.x[0].clone())
    k = step.window.end - step.window.start
    return [(seen[len(seen) // 2 - 1], slice(at, at + k), seen[-1][at : at + k]) for at, seen in blocks.items() if len(seen) > 1]


def reproduced(model: LLaDA, states: list[State], skip: tuple[int, ...]) -> float:
    """The share of the masks for which the network without these layers prefers what was written there in the end."""
    right = []
    for x, block, final in states:
        masked = x[block] == model.config.mask_token_id
        right.append((model(x[None], Pass(rows=block, skip=skip))[0].argmax(-1) == final)[masked])
    return torch.cat(right).float().mean().item()


def search(model: LLaDA, states: list[State], layers: int, trials: int = 1000) -> tuple[tuple[int, ...], float]:
    """The best of so many sets of layers drawn at random between the first and the last, and what it reproduces (SWIFT's random search)."""
    inner, draw = range(1, model.config.n_layers - 1), random.Random(0)
    sets = sorted({tuple(sorted(draw.sample(inner, layers))) for _ in range(trials)})
    return max(((skip, reproduced(model, states, skip)) for skip in tqdm(sets, leave=False)), key=lambda pair: pair[1])


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="lab.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", help="the file to write")
    parser.add_argument("--nodes", type=int, default=7, metavar="N", help="drafts to choose (default 7)")
    parser.add_argument("--layers", type=int, metavar="N", help="instead of drafts find N layers to leave out, and print them")
    parser.add_argument("--limit", type=int, default=40, metavar="N", help="problems of the training data to watch (default 40)")
    parser.add_argument("--threshold", type=float, help="of the rule; default one token a forward")
    parser.add_argument("--model", default=str(TINY), help="a folder or a Hugging Face id (default the embedded model)")
    args = parser.parse_args(arguments)
    if min(args.nodes, args.limit) < 1:
        parser.error("--nodes and --limit are at least 1")
    if (args.out is None) == (args.layers is None):
        parser.error("give a file to write, or --layers N")
    if args.out and not Path(args.out).absolute().parent.is_dir():
        parser.error(f"there is no folder for {args.out}")
    try:
        model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    except ValueError as error:
        parser.error(str(error))
    use_threads(model)
    if args.layers is not None and not 1 <= args.layers <= model.config.n_layers - 2:
        parser.error(f"--layers is {args.layers}, expected 1 to {model.config.n_layers - 2}: the first and the last layer stay")
    seen, states = Counter(), []
    for problem in tqdm(islice(problems("calibration"), args.limit), total=args.limit, leave=False):
        steps = decode(model, encode(tokenizer, [problem]), "fast-dllm", cache="dual", threshold=args.threshold, eos="stop")
        if args.layers:
            states += halfway(steps)
        else:
            seen += count(steps, model.config.mask_token_id)
    if args.layers:
        skip, share = search(model, states, args.layers)
        print(f"{share:.1%} of the tokens without the layers:", file=sys.stderr)
        return print(",".join(map(str, skip)))
    graph: Graph = choose(seen, args.nodes)
    replace_file(Path(args.out), json.dumps(graph) + "\n")
    print(f"wrote {args.out}: {graph}", file=sys.stderr)


if __name__ == "__main__":
    main()
