"""What the decoder costs and what it gets right, measured: `python -m lab.bench compare | delayed | oracle | speed | ...`.

compare    strategies on the same held-out problems: accuracy, forwards, rows, tokens per forward, tokens/s, speed-up over llada (compare.py)
delayed    how early each token is already the model's first choice (compare.py)
oracle     how often each rule stays inside a small language when the model makes no error, beside what theory says of one step
attention  the exact attention kernels side by side, for the queries, slots and masks of a decode (attention.py)
speed      one forward for each cache beside the floor of its arithmetic, and the scores beside the forward (speed.py)
grow       how a forward's time and its cache grow with the answer and the prompt (speed.py)
results    run the commands of docs/results.md and docs/speed.md again and write what they print under them (report.py)

Times on shared machines drift. So whatever is compared takes turns within one run, and the figure to quote is the ratio.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

from dllm import STRATEGIES, generate
from lab import parallel
from lab.attention import attention
from lab.command_line import Parser, has_weights
from lab.compare import compare, delayed
from lab.oracle import LANGUAGES, Oracle
from lab.report import remeasure, table
from lab.speed import CACHES, SHAPES, grow, speed
from load_weights import DTYPES

PAGES = [Path(__file__).parent.parent / "docs" / name for name in ("results.md", "speed.md")]


# --- oracle ------------------------------------------------------------------------------------------------------------------------------

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
    """Print how often each rule, sampling at temperature 1, writes a string of the language, and in how many forwards."""
    oracles = {name: Oracle(f"{name}-{args.length}") for name in LANGUAGES}
    print(f"{args.limit} runs each, length {args.length}, temperature 1; in brackets, forwards a string.\n")
    rows = []
    for name, exact in oracles.items():
        line = [name, f"{exact.one_step_validity():.1%}"]
        for strategy, own in RULES.values():
            settings = own | {"gen_length": args.length, "block_length": args.length, "temperature": 1.0, "seed": args.seed}
            result = generate(exact, [exact.encode_chat([])] * args.limit, strategy, **settings)
            valid = exact.contains(result.tokens[:, 1:]).float().mean().item()
            line.append(f"{valid:.1%} ({sum(result.forwards) / args.limit:.1f})")
        rows.append(line)
    print(table(["", "theory, at once", *RULES], rows))


def results(args: argparse.Namespace) -> None:
    """Measure the tables of docs/results.md and docs/speed.md again, those whose command holds a text or all."""
    remeasure(PAGES, args.only, main)


# --- the command line --------------------------------------------------------------------------------------------------------------------

DEVICE = {
    "--device": {"help": "default the first there is of cuda, mps, cpu"},
    "--dtype": {"choices": DTYPES, "help": "default float32 on a CPU, else bfloat16"},
}
PROBLEMS = DEVICE | {
    "--task": {"metavar": "A,B", "help": "stories, or names of tasks (default all)"},
    "--model": {"help": "a folder or a Hugging Face id (default the embedded one made for each strategy)"},
    "--adapter": {"help": "a LoRA adapter in PEFT layout to merge"},
    "--batch-size": 1,
    "--gen-length": 128,
    "--seed": {"type": int, "default": 1234, "help": "of the problems, default 1234"},
}
TIMED = DEVICE | {"--rounds": 9, "--threads": None, "--json": {"action": "store_true", "help": "print the figures as JSON"}}
FORWARDS = TIMED | {"--caches": {"metavar": "A,B", "help": f"of {', '.join(CACHES)} (default all)"}, "--block-length": 32}


# Each subcommand with its flags; a number stands for a whole number with this default, None for one without.
COMMANDS = {
    compare: PROBLEMS
    | {
        "--limit": 100,
        "--strategies": {
            "default": ",".join(name for name in STRATEGIES if has_weights(name)),
            "metavar": "A,B",
            "help": "as fast-dllm or fast-dllm:cache=dual:threshold=0.8; default all whose weights are here",
        },
        "--sweep": {"action": "store_true", "help": "each at several values of its main setting"},
        "--plot": {"metavar": "FILE", "help": "draw accuracy against tokens per forward, .png or .svg; needs matplotlib"},
        "--json": {"action": "store_true", "help": "print the figures as JSON"},
    },
    delayed: PROBLEMS | {"--limit": 20},
    oracle: {"--limit": 1000, "--length": 6, "--seed": {"type": int, "default": 0, "help": "of the sampling, default 0"}},
    attention: TIMED
    | {
        "--shape": {"default": "mid", "help": f"one of {', '.join(SHAPES)} (default mid)"},
        "--batch": {"metavar": "N,M", "default": "1,4", "help": "default 1,4"},
        "--rows": {"metavar": "N,M", "default": "32,128", "help": "positions of the query, default 32,128"},
        "--slots": {"metavar": "N,M", "default": "192,1024", "help": "default 192,1024"},
    },
    speed: FORWARDS
    | {
        "--shapes": {"metavar": "A,B", "help": f"of {', '.join(SHAPES)} (default all; on a CPU without 8b)"},
        "--batch": {"metavar": "N,M", "default": "1,4,16", "help": "default 1,4,16"},
        "--prompt-length": 64,
        "--gen-length": 128,
        "--compile": {"action": "store_true", "help": "beside the eager forward and scores, the compiled ones"},
        "--profile": {"action": "store_true", "help": "name the operators that take the time of each forward"},
    },
    grow: FORWARDS
    | {
        "--shape": {"default": "tiny", "help": f"one of {', '.join(SHAPES)} (default tiny)"},
        "--batch-size": 1,
        "--gen-lengths": {"metavar": "N,M", "default": "128,256,512,1024,2048", "help": "each at the first prompt length"},
        "--prompt-lengths": {"metavar": "N,M", "default": "64,256,1024,4096", "help": "each at the first gen_length"},
    },
    results: {"only": {"nargs": "?", "default": "", "help": "run only the commands that hold this text"}},
}


def command_line() -> Parser:
    parser = Parser(prog="lab.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for run, flags in COMMANDS.items():
        sub = commands.add_parser(run.__name__, help=run.__doc__.splitlines()[0])
        for flag, how in flags.items():
            number = {"type": int, "default": how, "metavar": "N", "help": how and f"default {how}"}
            sub.add_argument(flag, **(how if isinstance(how, dict) else number))
        numbers = [flag[2:].replace("-", "_") for flag, how in flags.items() if not isinstance(how, dict)]
        sub.set_defaults(run=run, numbers=numbers)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = command_line()
    args = parser.parse_args(arguments)
    for name in args.numbers:
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"{name} is {value}, expected at least 1")
    run = args.run
    del args.run, args.numbers
    shared = parallel.processes() > 1
    with parallel.together(args, one_model=False) if shared else nullcontext():
        try:
            if shared and run is not compare:
                raise ValueError(f"{run.__name__} works in one process only; compare shares its problems out")
            run(args)
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
