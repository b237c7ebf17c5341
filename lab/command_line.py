"""The command line of dllm.py: `python dllm.py --prompt "..."`.

The answer goes to stdout, everything else to stderr. Whatever is wrong with the input is one line and exit code 2, before any work. The flags
of settings are made from their declarations in dllm.py; what looks at a decode is imported only when its flag asks for it.
"""

import argparse
import functools
import inspect
import json
import os
import re
import sys
from pathlib import Path

import torch

from dllm import DEFAULT, FILTER, STRATEGIES, Option, Settings, StepLimit, check_prompt, finish, options, plan, prepare, steps
from load_weights import DTYPES, load_config, load_model, load_tokenizer
from model import LLaDA

TINY = Path(__file__).parent.parent / "weights" / "tiny"


def strategy_table() -> str:
    """Every strategy with its settings, their defaults and meanings, as text."""
    lines = []
    for name, builder in STRATEGIES.items():
        lines.append(f"{name}\n  {inspect.getdoc(builder).splitlines()[0]}")
        for option in options(builder).values():
            lines.append(f"    --{option.name.replace('_', '-')} {shown(option.default)}: {option.meaning}")
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """Errors are one line, --gen_length is --gen-length, and the flags of settings come from their declarations."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([re.sub(r"^--\w+", lambda flag: flag[0].replace("_", "-"), arg) for arg in args], namespace)

    def add_option(self, option: Option, note: str = "") -> None:
        """Add the flag of a setting. What is not given is absent, so that no default stands here a second time."""
        choices = f" ({' | '.join(option.choices)})" if option.choices else ""
        flag, how = "--" + option.name.replace("_", "-"), {"default": argparse.SUPPRESS}
        how["help"] = f"{option.meaning}{choices}{note}".replace("%", "%%")
        if option.kind is bool:
            self.add_argument(flag, action=argparse.BooleanOptionalAction, **how)
            return

        def convert(text: str):
            return option.read(text)

        convert.__name__ = option.kind.__name__  # which argparse's message names
        self.add_argument(flag, type=convert, metavar="X", **how)


def command_line() -> Parser:
    parser = Parser(prog="dllm.py", description="Answer a prompt with a diffusion language model.", allow_abbrev=False)
    parser.add_argument("--prompt", help="the question, or - to read it from standard input")
    parser.add_argument("--strategy", default=DEFAULT, metavar="NAME", help=f"{' | '.join(STRATEGIES)} | list (default {DEFAULT})")
    parser.add_argument("--model", help="a folder, a Hugging Face id, or oracle:NAME (default the embedded one made for the strategy)")
    parser.add_argument("--adapter", help="a LoRA adapter in PEFT layout to merge: a folder or a Hugging Face id")
    parser.add_argument("--raw", action="store_true", help="take the prompt as it is instead of putting it into the chat template")
    parser.add_argument("--show-prompt", action="store_true", help="print first the prompt as the model sees it")
    parser.add_argument("--json", action="store_true", help="print the counters as one line of JSON, on stderr like their plain form")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default the first there is)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default float32 on a CPU, else bfloat16)")
    parser.add_argument("--watch", type=float, nargs="?", const=0.1, metavar="SECONDS", help="draw each forward, for so long (default 0.1)")
    parser.add_argument("--explain", action="store_true", help="say in words what each forward does, on stderr")
    parser.add_argument("--trace", metavar="FILE", help="record every forward: run.jsonl to work with, run.html to look at")
    for option in options(Settings).values():
        parser.add_option(option, "" if option.default is None else f" (default {option.default})")
    takers: dict[str, list[tuple[str, Option]]] = {}
    for name, builder in STRATEGIES.items():
        for option in options(builder).values():
            takers.setdefault(option.name, []).append((name, option))
    for pairs in takers.values():
        differ = len({option.meaning for _, option in pairs if not option.meaning.startswith("as in")}) > 1
        note = f" (in {pairs[0][0]}; the others: --strategy list)" if differ else ""
        parser.add_option(pairs[0][1], f"{note} [default in {', '.join(f'{name} {shown(option.default)}' for name, option in pairs)}]")
    parser.set_defaults(flags=(*options(Settings), *takers))
    return parser


def shown(default: object) -> str:
    return "none" if default is None else str(default)


def made_for(strategy: str) -> tuple[Path, Path | None]:
    """The embedded model, and its adapter, that a strategy is meant for."""
    return {"ar": (TINY.with_name("tiny-ar"), None), "d2f": (TINY, TINY.with_name("tiny-d2f"))}.get(strategy, (TINY, None))


def has_weights(strategy: str) -> bool:
    if strategy == "learn2pd" and not FILTER.is_file():
        return False
    return all(folder.is_dir() and any(folder.iterdir()) for folder in made_for(strategy) if folder)


def find_model(args: argparse.Namespace) -> tuple:
    """The tokenizer of --model, its config, and a function that loads it; an oracle is all of these itself."""
    if args.model is None:
        if not has_weights(args.strategy):
            raise ValueError(
                f"{args.strategy} needs weights of its own: give --model, or train them by python -m lab.train {args.strategy}"
            )
        args.model, adapter = made_for(args.strategy)
        args.adapter = args.adapter or adapter
    if str(args.model).startswith("oracle:"):
        if unused := [flag for flag in ("adapter", "device", "dtype") if getattr(args, flag)]:
            raise ValueError(f"--{unused[0]} is for checkpoints: an oracle has no weights")
        from lab.oracle import Oracle

        oracle = Oracle(args.model.removeprefix("oracle:"))
        return oracle, oracle.config, lambda: oracle
    load = functools.partial(load_model, args.model, args.adapter, args.device, DTYPES.get(args.dtype))
    return load_tokenizer(args.model), load_config(args.model), load


def read_prompt(text: str | None) -> str:
    if text is None:
        raise ValueError("no prompt: give --prompt TEXT, or --prompt - to read it from standard input")
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if text == "-" else text
        text.encode("utf-8")  # an argument may hold bytes that were none
    except UnicodeError:
        raise ValueError("the prompt is not valid UTF-8") from None
    if not text.strip():
        raise ValueError("the prompt is empty")
    return text


def printable(text: str) -> str:
    """Text that a terminal shows as it is: control characters, which could command it, become U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def use_threads(model: LLaDA) -> None:
    """Run a small model on one thread: on two cores a second one gains 1.3x when they are idle, and costs 15x when one is busy."""
    if model.device.type == "cpu" and model.config.d_model < 512:
        torch.set_num_threads(1)


def peak_memory(device: torch.device) -> float | None:
    """Most bytes held at once: on the GPU, or by this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: list[str] | None = None) -> None:
    """Answer one prompt: the text on stdout, all else on stderr; exit code 2 for anything wrong with the input."""
    parser = command_line()
    args = parser.parse_args(arguments)
    if args.strategy == "list":
        return print(strategy_table())
    settings = {name: value for name, value in vars(args).items() if name in args.flags}
    try:
        strategy, chosen = plan(args.strategy, settings)
        if observed := args.explain or args.watch is not None or args.trace is not None:
            from lab.observe import check_flags, observe

            check_flags(args, strategy)
        text = read_prompt(args.prompt)
        tokenizer, config, load = find_model(args)
        ids = tokenizer.encode(text) if args.raw else tokenizer.encode_chat([{"role": "user", "content": text}])
        check_prompt(ids, config, chosen)
        model = load()
        use_threads(model)  # before `prepare` compiles: compiled code holds for one number of threads
        canvas = prepare(model, ids, args.strategy, settings)
    except ValueError as error:
        parser.error(str(error))
    try:
        result = finish(canvas, observe(steps(canvas), canvas, tokenizer, args) if observed else steps(canvas))
    except (StepLimit, torch.OutOfMemoryError, OSError) as error:
        parser.error(str(error))
    shown_prompt = tokenizer.decode(ids, skip_special_tokens=False) + "\n" if args.show_prompt else ""
    try:
        print(printable(shown_prompt + tokenizer.decode(result.answer())), flush=True)
    except OSError as error:  # a full disk, or a pipe whose reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered must not fail again at exit
        parser.exit(1, f"{parser.prog}: the answer cannot be written: {error.strerror}\n")
    memory = peak_memory(model.device)
    counters = {"strategy": args.strategy} | result.counters()
    counters |= {"peak_memory_mb": memory and round(memory / 1e6), "seed": chosen.seed}
    print(json.dumps(counters) if args.json else "  ".join(f"{name} {value}" for name, value in counters.items()), file=sys.stderr)


def run() -> None:
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
