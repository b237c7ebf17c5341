"""Exact match of a model on held-out problems, decoded as a visitor would: `python -m lab.score [folder]`.

Left out on purpose: speed, and the trade-off curves of the strategies; this says only whether the answers are right.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

from dllm import EMBEDDED, STRATEGIES, Parser, generate
from lab.tasks import TASKS, check, problems
from load_weights import load_model, load_tokenizer

TOGETHER = 50  # problems decoded in one batch


def score(model, tokenizer, task: str, count: int, seed: str = "score", **settings) -> tuple[int, int]:
    """Decode `count` held-out problems of a task. Returns how many answers are right, and how many of these are followed by EOS alone.

    An answer is what stands before the first EOS. settings: those of dllm.generate.
    """
    chosen = list(islice(problems(seed, task, held_out=True), count))
    right = clean = 0
    for first in range(0, count, TOGETHER):
        some = chosen[first : first + TOGETHER]
        out = generate(model, [tokenizer.encode_chat([{"role": "user", "content": p.prompt}]) for p in some], **settings)
        for row, problem in enumerate(some):
            if check(problem, tokenizer.decode(out.answer(row), skip_special_tokens=False)):
                tail = out.tokens[row, out.prompt_length + out.lengths[row] :]
                right, clean = right + 1, clean + bool((tail == model.config.eos_token_id).all())
    return right, clean


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m lab.score", description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", nargs="?", default=EMBEDDED, type=Path, help="a checkpoint in LLaDA's format")
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS), help="which tasks")
    parser.add_argument("--count", type=int, default=300, help="problems a task")
    parser.add_argument("--strategy", nargs="+", default=["llada"], choices=list(STRATEGIES), help="which strategies, with their default settings")
    parser.add_argument("--gen-length", type=int, default=64, help="tokens to write")
    parser.add_argument("--block-length", type=int, default=32, help="tokens a block")
    given = parser.parse_args(arguments)
    if given.count < 1:
        parser.error(f"argument --count: {given.count} is not a number of problems: give 1 or more")
    try:
        model, tokenizer = load_model(given.folder), load_tokenizer(given.folder)
        for strategy in given.strategy:
            for task in given.task:
                settings = dict(strategy=strategy, gen_length=given.gen_length, block_length=given.block_length)
                right, clean = score(model, tokenizer, task, given.count, **settings)
                share = f"{right:4} of {given.count} right ({right / given.count:6.1%})"
                print(f"{strategy:12} {task:11} {share}, {clean} of them with nothing but EOS behind", flush=True)
    except ValueError as error:
        print(f"lab.score: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
