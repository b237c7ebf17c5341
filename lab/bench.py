"""What the decoder costs and what it gets right: `python -m lab.bench compare | speed | ...`.

Times on shared machines drift. So whatever is compared takes turns within one run, and the figure
to quote is the ratio.
"""

import argparse
import sys
from contextlib import nullcontext, suppress
from math import inf
from pathlib import Path

if not __package__:  # started by its path, from any folder: python lab/bench.py
    sys.path[0] = str(Path(__file__).parent.parent)

import torch

from dllm import Settings, StepLimit, generate
from lab import parallel
from lab.command_line import Parser
from lab.compare import FORMS, compare, delayed
from lab.contenders import ready
from lab.data import WAYS
from lab.files import write
from lab.gpu import gpu
from lab.oracle import LANGUAGES, Oracle
from lab.report import remeasure, show
from lab.speed import CACHES, SHAPES, speed
from load_weights import DTYPES, check_memory
from strategies import options

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
    cells = max(exact.strings.numel() for exact in oracles.values())
    check_memory(f"{args.limit} runs at once", args.limit * cells * 12, Oracle.device)
    asked = f"{args.limit} runs each, length {args.length}, temperature 1; in brackets, forwards."
    write(f"{asked}\n", "table")
    show(measured(name, exact, args) for name, exact in oracles.items())


def measured(name: str, exact: Oracle, args: argparse.Namespace) -> dict[str, str]:
    """A language's line of the table."""
    common = {"gen_length": args.length, "block_length": args.length, "temperature": 1.0}
    row = {"": name, "theory, at once": f"{exact.one_step_validity():.1%}"}
    for rule, (strategy, own) in RULES.items():
        prompts = [exact.encode_chat([])] * args.limit
        result = generate(exact, prompts, strategy, **own, **common, seed=args.seed)
        valid = exact.contains(result.tokens[:, 1:]).float().mean()
        row[rule] = f"{valid:.1%} ({sum(result.forwards) / args.limit:.1f})"
    return row


# --- the command line ----------------------------------------------------------------------------


def results(args: argparse.Namespace) -> None:
    """Measure the tables of docs/results.md and docs/speed.md again, all or some."""
    docs = Path(__file__).parent.parent / "docs"
    remeasure([docs / "results.md", docs / "speed.md"], args.only, main)


def whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def size(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) < inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")


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
COMMANDS = {
    compare: PROBLEMS
    | {
        "--strategies": flag("as fast-dllm:cache=dual or d2f:adapter=none (default all)", ready()),
        "--eos": flag("of all: %(choices)s, or own, each as it is meant (default stop)", "stop")
        | {"choices": (*options(Settings)["eos"].choices, "own"), "metavar": None},
        "--sweep": {"action": "store_true", "help": "each at several values of its main setting"},
        "--paired": {"action": "store_true", "help": "count where each differs from the first"},
        "--fragile": {
            "help": "add the share of tokens, before the first EOS, that another was less than "
            "twice SIZE from when they were written: less than SIZE in each logit may flip them",
            "type": size,
            "metavar": "SIZE",
        },
        "--plot": flag("draw accuracy against tokens per forward, .png or .svg"),
        "--limit": number(None) | {"help": "problems of each (default 100 a task, all of a file)"},
        "--data": flag("problems from a file of JSON lines instead of --task", metavar="FILE"),
        "--question": flag("the field of the question, default question"),
        "--answer": flag("the field of the answer, default answer"),
        "--gold": flag("what is right: the last match in it (default as --extract)"),
        "--extract": flag("what is answered: the last match of this pattern (default a number)"),
        "--check": flag("say what is right: (line, text) -> bool", metavar="FILE.py:FUNCTION"),
        "--few-shot": flag("solved problems that go before each, as --data", metavar="FILE"),
        "--turns": flag("shots in one user turn, in many, or no template: %(choices)s")
        | {"choices": WAYS, "metavar": None},
        "--until": flag("cut answers at this text; several times for several", action="append"),
        "--out": flag("add each answer to a file of JSON lines, and go on there", metavar="FILE"),
        **{f"--{form}": {"action": "store_true", "help": f"print it as {form}"} for form in FORMS},
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
        "--theirs": {
            "action": "store_true",
            "help": "a step scored as the authors' code does, too",
        },
    },
    gpu: {"--device": flag("cuda, or cuda:1 (default the first there is)")},
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
    with parallel.together(parser, args, one_model=False) if shared else nullcontext():
        try:
            if shared and run is not compare:
                raise ValueError(f"{run.__name__} works in one process only, unlike compare")
            run(args)
        except (ValueError, StepLimit, OSError, torch.OutOfMemoryError) as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            parser.exit(130, "lab.bench: stopped; a table holds what was done till then\n")


if __name__ == "__main__":
    main()
