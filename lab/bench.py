"""What the decoder costs and what it gets right: `python -m lab.bench compare | speed | ...`.

Times on shared machines drift. So whatever is compared takes turns within one run, and the figure
to quote is the ratio.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

from dllm import generate
from lab import parallel
from lab.command_line import Parser, has_weights
from lab.compare import compare, delayed
from lab.oracle import LANGUAGES, Oracle
from lab.report import remeasure, table
from lab.speed import CACHES, SHAPES, speed
from load_weights import DTYPES
from strategies import STRATEGIES

RULES = {
    "all at once": ("llada", {"steps": 1}),
    "two steps": ("llada", {"steps": 2}),
    "one by one": ("llada", {}),
    "threshold 0.5": ("fast-dllm", {"cache": "none", "threshold": 0.5}),
    "threshold 0.9": ("fast-dllm", {"cache": "none", "threshold": 0.9}),
    "factor 1": ("fast-dllm", {"cache": "none", "factor": 1.0}),
    "localleap": ("localleap", {"relaxed_threshold": 0.4}),
}


def oracle(args: argparse.Namespace) -> None:
    """How often each rule, sampling, writes a string of a language, beside theory of one step."""
    oracles = {name: Oracle(f"{name}-{args.length}") for name in LANGUAGES}
    print(f"{args.limit} runs each, length {args.length}, temperature 1; in brackets, forwards.\n")
    common = {"gen_length": args.length, "block_length": args.length, "temperature": 1.0}
    rows = []
    for name, exact in oracles.items():
        row = {"": name, "theory, at once": f"{exact.one_step_validity():.1%}"}
        for rule, (strategy, own) in RULES.items():
            prompts = [exact.encode_chat([])] * args.limit
            result = generate(exact, prompts, strategy, **own, **common, seed=args.seed)
            valid = exact.contains(result.tokens[:, 1:]).float().mean()
            row[rule] = f"{valid:.1%} ({sum(result.forwards) / args.limit:.1f})"
        rows.append(row)
    print(table(rows))


# --- the command line ----------------------------------------------------------------------------


def results(args: argparse.Namespace) -> None:
    """Measure the tables of docs/results.md and docs/speed.md again, all or some."""
    docs = Path(__file__).parent.parent / "docs"
    remeasure([docs / "results.md", docs / "speed.md"], args.only, main)


def whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def wholes(text: str) -> list[int]:
    return [whole(part) for part in text.split(",")]


def flag(help: str, default=None, **how) -> dict:
    return {"help": help, "default": default, "metavar": "X"} | how


def number(default: int | None) -> dict:
    return flag("default %(default)s", default, type=whole)


DEVICE = {
    "--device": flag("default the first there is of cuda, mps, cpu"),
    "--dtype": flag("default float32 on a CPU, else bfloat16", choices=DTYPES, metavar=None),
    "--gen-length": number(128),
}
PROBLEMS = DEVICE | {
    "--task": flag("stories, or names of tasks (default all)", metavar="A,B"),
    "--model": flag("a folder or a Hugging Face id (default each strategy's embedded one)"),
    "--adapter": flag("a LoRA adapter in PEFT layout to merge"),
    "--seed": flag("of the problems, default 1234", 1234, type=int),
    "--batch-size": number(1),
}
READY = ",".join(name for name in STRATEGIES if has_weights(name))
COMMANDS = {
    compare: PROBLEMS
    | {
        "--strategies": flag("as fast-dllm:cache=dual or d2f:adapter=none (default all)", READY),
        "--sweep": {"action": "store_true", "help": "each at several values of its main setting"},
        "--paired": {"action": "store_true", "help": "count where each differs from the first"},
        "--plot": flag("draw accuracy against tokens per forward, .png or .svg"),
        "--limit": number(100),
        "--json": {"action": "store_true", "help": "print the figures as JSON"},
    },
    delayed: PROBLEMS | {"--limit": number(20)},
    oracle: {
        "--limit": number(1000),
        "--length": number(6),
        "--seed": flag("of the sampling, default 0", 0, type=int),
    },
    speed: DEVICE
    | {
        "--shapes": flag(f"of {', '.join(SHAPES)} (default tiny,mid)", "tiny,mid"),
        "--caches": flag("default all: %(default)s", ",".join(CACHES)),
        "--batch": flag("default 1,4,16", "1,4,16", type=wholes),
        "--prompt-length": number(64),
        "--block-length": number(32),
        "--rounds": number(9),
        "--threads": number(None),
        "--compile": {"action": "store_true", "help": "beside the eager forward, the compiled one"},
    },
    results: {"only": flag("run the commands that hold this text", "", nargs="?")},
}


def command_line() -> Parser:
    parser = Parser(prog="lab.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for run, flags in COMMANDS.items():
        sub = commands.add_parser(run.__name__, help=run.__doc__.splitlines()[0])
        sub.set_defaults(run=run)
        for name, how in flags.items():
            sub.add_argument(name, **how)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = command_line()
    args = parser.parse_args(arguments)
    run = vars(args).pop("run")  # what is left can be printed as JSON
    shared = parallel.processes() > 1
    with parallel.together(args, one_model=False) if shared else nullcontext():
        try:
            if shared and run is not compare:
                raise ValueError(f"{run.__name__} works in one process only, unlike compare")
            run(args)
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
