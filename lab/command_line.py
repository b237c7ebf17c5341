"""The command line of dllm.py: `python dllm.py --prompt "..."`, or `--chat`, or `--prompts FILE`.

The answer goes to stdout, everything else to stderr. Whatever is wrong with the input is one line and exit code 2, before any work. The flags
of settings are made from their declarations in dllm.py; what looks at a decode, and every other way to ask, is imported only when its flag
asks for it.
"""

import argparse
import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from options import Option, check_prompt, options
from related import FILTER

from dllm import DEFAULT, STRATEGIES, Settings, StepLimit, Strategy, finish, plan, prepare, steps
from load_weights import DTYPES, load_config, load_model, load_tokenizer
from model import LLaDA

TINY = Path(__file__).parent.parent / "weights" / "tiny"


def strategy_table() -> str:
    """Every strategy with its settings, their defaults and meanings, as text."""
    lines = []
    for name, builder in STRATEGIES.items():
        lines.append(f"{name}\n  {inspect.getdoc(builder).splitlines()[0]}")
        for option in options(builder).values():
            lines.append(
                f"    --{option.name.replace('_', '-')} {shown(option.default)}: {option.meaning}"
            )
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """Errors are one line, --gen_length is --gen-length, and the flags of settings come from their declarations."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args(
            [re.sub(r"^--\w+", lambda flag: flag[0].replace("_", "-"), arg) for arg in args],
            namespace,
        )

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
    parser = Parser(
        prog="dllm.py",
        description="Answer a prompt with a diffusion language model.",
        allow_abbrev=False,
    )
    parser.add_argument("--prompt", help="the question, or - to read it from standard input")
    parser.add_argument(
        "--infill",
        metavar="TEXT",
        help="fill the holes of a text, ___ for one token, ___5 for five; beside a prompt, of its answer",
    )
    parser.add_argument(
        "--chat", action="store_true", help="talk, turn by turn, until the input ends"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="answer the prompts of a file of JSON lines; goes on where it was stopped",
    )
    parser.add_argument("--out", metavar="FILE", help="where the answers to --prompts go")
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="X",
        help="how many of --prompts are answered together (default 8)",
    )
    parser.add_argument(
        "--strategy",
        default=DEFAULT,
        metavar="NAME",
        help=f"{' | '.join(STRATEGIES)} | list (default {DEFAULT})",
    )
    parser.add_argument(
        "--model",
        help="a folder, a Hugging Face id, or oracle:NAME (default the embedded one made for the strategy)",
    )
    parser.add_argument(
        "--adapter", help="a LoRA adapter in PEFT layout to merge: a folder or a Hugging Face id"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="take the prompt as it is instead of putting it into the chat template",
    )
    parser.add_argument(
        "--show-prompt", action="store_true", help="print first the prompt as the model sees it"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the counters as one line of JSON, on stderr like their plain form",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default the first there is)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the weights (default float32 on a CPU, else bfloat16)"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="keep the matrices in 8 bits: half the memory, nearly the same answers",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="fetch nothing: a Hugging Face id must be on this machine already",
    )
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=0.1,
        metavar="SECONDS",
        help="draw each forward, for so long (default 0.1)",
    )
    parser.add_argument(
        "--explain", action="store_true", help="say in words what each forward does, on stderr"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="record every forward: run.jsonl to work with, run.html to look at",
    )
    for option in options(Settings).values():
        parser.add_option(option, "" if option.default is None else f" (default {option.default})")
    takers: dict[str, list[tuple[str, Option]]] = {}
    for name, builder in STRATEGIES.items():
        for option in options(builder).values():
            takers.setdefault(option.name, []).append((name, option))
    for pairs in takers.values():
        differ = (
            len({option.meaning for _, option in pairs if not option.meaning.startswith("as in")})
            > 1
        )
        note = f" (in {pairs[0][0]}; the others: --strategy list)" if differ else ""
        parser.add_option(
            pairs[0][1],
            f"{note} [default in {', '.join(f'{name} {shown(option.default)}' for name, option in pairs)}]",
        )
    parser.set_defaults(flags=(*options(Settings), *takers), split=None)
    return parser


def shown(default: object) -> str:
    return "none" if default is None else str(default)


def made_for(strategy: str) -> tuple[Path, Path | None]:
    """The embedded model, and its adapter, that a strategy is meant for."""
    return {"ar": (TINY.with_name("tiny-ar"), None), "d2f": (TINY, TINY.with_name("tiny-d2f"))}.get(
        strategy, (TINY, None)
    )


def guide_for(strategy: str) -> Path | None:
    """The embedded model that judges what the model writes, if a strategy has such a second one."""
    return (
        made_for("ar")[0]
        if strategy in STRATEGIES and "guide" in options(STRATEGIES[strategy])
        else None
    )


def has_weights(strategy: str) -> bool:
    if strategy == "learn2pd" and not FILTER.is_file():
        return False
    return all(is_there(folder) for folder in (*made_for(strategy), guide_for(strategy)) if folder)


def is_there(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def load_guide(
    strategy: str, guide: str | None = None, device=None, dtype=None
) -> dict[str, LLaDA]:
    """The setting `guide` of a strategy that has one: loaded from this folder or id, or the embedded one."""
    embedded = guide_for(strategy)
    return {"guide": load_model(guide or embedded, None, device, dtype)} if embedded else {}


def find_model(args: argparse.Namespace) -> tuple:
    """The tokenizer of --model, its config, and a function that loads it; an oracle is all of these itself."""
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # which the hub's library reads when it is first needed
    if embedded := guide_for(args.strategy):
        given = getattr(args, "guide", None)
        if not given and not is_there(embedded):
            raise ValueError(
                f"{args.strategy} needs a guide: give --guide, or train one by python -m lab.train ar"
            )
        load_config(given or embedded)  # is it there? Better asked before the model is loaded
    if args.model is None:
        if not all(map(is_there, filter(None, made_for(args.strategy)))):
            raise ValueError(
                f"{args.strategy} needs weights of its own: give --model, or train them by python -m lab.train {args.strategy}"
            )
        args.model, adapter = made_for(args.strategy)
        args.adapter = args.adapter or adapter
    if str(args.model).startswith("oracle:"):
        if unused := [
            flag for flag in ("adapter", "device", "dtype", "int8", "raw") if getattr(args, flag)
        ]:
            raise ValueError(f"--{unused[0]} is for checkpoints: an oracle has no weights")
        from lab.oracle import Oracle

        oracle = Oracle(args.model.removeprefix("oracle:"))
        return oracle, oracle.config, lambda: oracle
    load = functools.partial(
        load_model,
        args.model,
        args.adapter,
        args.device,
        DTYPES.get(args.dtype),
        args.int8,
        args.split,
    )
    return load_tokenizer(args.model), load_config(args.model), load


def read_prompt(text: str | None) -> str:
    if text is None:
        raise ValueError(
            "no prompt: give --prompt TEXT, or --prompt - to read it from standard input"
        )
    return whole_text(
        sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if text == "-" else text,
        "prompt",
    )


def whole_text(text: str, name: str) -> str:
    """The text; ValueError if it is empty, or holds what was no UTF-8 where it came from."""
    try:
        text.encode("utf-8")
    except UnicodeError:
        raise ValueError(f"the {name} is not valid UTF-8") from None
    if not text.strip():
        raise ValueError(f"the {name} is empty")
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def check_flags(args: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not go together."""
    given = {
        flag for flag, value in vars(args).items() if value is not None and value is not False
    }  # 0 is given
    if len(ways := [way for way in ("prompt", "chat", "prompts") if way in given]) > 1:
        raise ValueError(f"--{ways[0]} and --{ways[1]} are two ways to ask: give one")
    for way, others in APART.items():
        if way in given and (clash := [other for other in others if other in given]):
            raise ValueError(f"--{clash[0].replace('_', '-')} has no meaning with --{way}")
    if args.split and (
        alone := [flag for flag in ("chat", "int8") if flag in given]
        or ["prompt -"] * (args.prompt == "-")
    ):
        raise ValueError(f"--{alone[0]} works in one process only")
    for flag, needed in {"out": "prompts", "batch_size": "prompts", "prompts": "out"}.items():
        if flag in given and needed not in given:
            raise ValueError(f"--{flag.replace('_', '-')} needs --{needed}")


APART = {
    "chat": ("infill", "trace", "raw", "show_prompt"),
    "prompts": ("infill", "trace", "watch", "explain", "show_prompt"),
}


def main(arguments: list[str] | None = None) -> None:
    """Answer: the text on stdout, all else on stderr; exit code 2 for anything wrong with the input."""
    parser = command_line()
    args = parser.parse_args(arguments)
    if args.strategy == "list":
        return print(strategy_table())
    settings = {name: value for name, value in vars(args).items() if name in args.flags}
    if "LOCAL_RANK" in os.environ:  # torchrun has started this
        from lab import parallel

        if parallel.processes() > 1:
            with parallel.together(args, args.prompts is None):
                return carry_out(parser, args, settings)
    carry_out(parser, args, settings)


def carry_out(parser: Parser, args: argparse.Namespace, settings: dict) -> None:
    """Check what was asked, then do it."""
    try:
        check_flags(args)
        if args.chat:
            from lab.chat import chat as way
        elif args.prompts is not None:
            from lab.batch import batch as way
        else:
            way = single
        run = way(args, settings)
    except ValueError as error:
        parser.error(str(error))
    try:
        run()
    except BrokenOutput as error:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # what is still buffered must not fail again at exit
        parser.exit(1, f"{parser.prog}: the answer cannot be written: {error}\n")
    except (StepLimit, torch.OutOfMemoryError, OSError) as error:
        parser.error(str(error))


def single(args: argparse.Namespace, settings: dict) -> Callable[[], None]:
    """Check all there is to check, and return what decodes one prompt, or one text with holes, and prints it."""
    strategy, _ = checked_plan(
        args, settings, None if args.infill is None else 1
    )  # its length is not known yet
    if observed := args.explain or args.watch is not None or args.trace is not None:
        from lab.observe import check_flags, observe

        check_flags(args, strategy)
    text = read_prompt(args.prompt) if args.infill is None or args.prompt is not None else None
    tokenizer, config, load = find_model(args)
    holes = None
    if args.infill is not None:
        from lab import infill

        holes = infill.template(
            whole_text(args.infill, "text to fill in"), tokenizer, config.mask_token_id
        )
    if text is None:
        ids = infill.beginning(tokenizer)
    else:
        ids = (
            tokenizer.encode(text)
            if args.raw
            else tokenizer.encode_chat([{"role": "user", "content": text}])
        )
    check_prompt(ids, config, checked_plan(args, settings, holes and len(holes))[1].gen_length)
    model = open_model(args, settings, load)
    canvas = prepare(model, ids, args.strategy, settings, holes)

    def answer() -> None:
        result = finish(
            canvas, observe(steps(canvas), canvas, tokenizer, args) if observed else steps(canvas)
        )
        shown_prompt = (
            tokenizer.decode(ids, skip_special_tokens=False) + "\n" if args.show_prompt else ""
        )
        filled = (
            result.answer()
            if holes is None
            else result.tokens[0, result.prompt_length :][: len(holes)].tolist()
        )
        write(shown_prompt + tokenizer.decode(filled))
        tell(args, result.counters(), model.device, canvas.settings.seed)

    return answer


def checked_plan(
    args: argparse.Namespace, settings: dict, length: int | None = None
) -> tuple[Strategy, Settings]:
    """The strategy and the settings of all strategies, both checked; a guide has only a name so far."""
    return plan(args.strategy, settings | dict.fromkeys({"guide"} & set(settings)), length)


def open_model(args: argparse.Namespace, settings: dict, load: Callable[[], LLaDA]) -> LLaDA:
    """Load the model, and into the settings the guide of a strategy that has one."""
    model = load()
    settings |= load_guide(args.strategy, settings.get("guide"), model.device, model.dtype)
    use_threads(model)  # before `prepare` compiles: compiled code holds for one number of threads
    return model


class BrokenOutput(Exception):
    """Nobody takes the answer: a full disk, or a pipe whose reader has gone."""


def write(text: str) -> None:
    try:
        print(printable(text), flush=True)
    except OSError as error:
        raise BrokenOutput(error.strerror) from None


def tell(args: argparse.Namespace, counters: dict, device: torch.device, seed: int) -> None:
    """Print what it took, on stderr."""
    memory = peak_memory(device)
    counters = (
        {"strategy": args.strategy}
        | counters
        | {"peak_memory_mb": memory and round(memory / 1e6), "seed": seed}
    )
    print(
        json.dumps(counters)
        if args.json
        else "  ".join(f"{name} {value}" for name, value in counters.items()),
        file=sys.stderr,
    )


def run() -> None:
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
