"""The command line of dllm.py: `python dllm.py --prompt "..."`, or `--chat`, or `--prompts FILE`.

The answer goes to stdout, everything else to stderr. Whatever is wrong with the input is one line
and exit code 2, before any work. The flags of settings are made from their declarations in dllm.py;
what looks at a decode, and every other way to ask, is imported only when its flag asks for it.
"""

import difflib
import inspect
import json
import os
import re
import sys
from argparse import PARSER, SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path

import torch

from checks import brief
from dllm import DEFAULT, Settings, StepLimit, check_prompt, finish, plan, prepare, stream
from lab import infill, own_rule
from lab.files import check_place, printable, whole_text, write
from load_weights import DTYPES, load_config, load_model, load_tokenizer
from model import LLaDA
from strategies import STRATEGIES, Option, Strategy, build, options, require

TINY = Path(__file__).parent.parent / "weights" / "tiny"

FLAGS = {  # but those of settings; a value is taken by those that name one
    "--prompt TEXT": "the question, or - to read it from standard input",
    "--infill TEXT": "fill the holes of a text (of the answer to a prompt): ___, or ___5 for five",
    "--chat": "talk, turn by turn, until the input ends",
    "--prompts FILE": "answer a file of prompts in JSON lines; goes on where it was stopped",
    "--out FILE": "where the answers to --prompts go",
    "--batch-size X": "how many of --prompts are answered together (default 8)",
    "--strategy NAME": f"{' | '.join(STRATEGIES)} | list (default {DEFAULT})",
    "--model MODEL": "a folder, a Hugging Face id, or oracle:NAME (default the embedded one)",
    "--adapter ADAPTER": "a LoRA adapter in PEFT layout to merge: a folder or a Hugging Face id",
    "--raw": "take the prompt as it is instead of putting it into the chat template",
    "--show-prompt": "print first the prompt as the model sees it",
    "--json": "print the counters as one line of JSON, on stderr like their plain form",
    "--device DEVICE": "cpu, cuda, cuda:1, mps (default the first there is)",
    f"--dtype {'|'.join(DTYPES)}": "of the weights (default float32 on a CPU, else bfloat16)",
    "--int8": "keep the matrices in 8 bits: half the memory, nearly the same answers",
    "--offline": "fetch nothing: a Hugging Face id must be on this machine already",
    "--watch SECONDS": "draw each forward, and show it for so long (default 0.1)",
    "--explain": "say in words what each forward does, on stderr",
    "--trace FILE": "record every forward: run.jsonl to work with, run.html to look at",
}
VALUES = {
    "--batch-size": {"type": int},
    "--strategy": {"default": DEFAULT},
    "--dtype": {"choices": DTYPES},
    "--watch": {"type": float, "nargs": "?", "const": 0.1},
}
APART = {  # flags that have no meaning together
    "chat": ("prompt", "prompts", "infill", "trace", "raw", "show_prompt"),
    "prompts": ("prompt", "infill", "trace", "watch", "explain", "show_prompt"),
}
TOGETHER = {"out": "prompts", "batch_size": "prompts", "prompts": "out"}


class Parser(ArgumentParser):
    """Errors are one line, --gen_length is --gen-length, and settings become flags."""

    def error(self, message: str):
        line = printable(" ".join(message.split()))
        if line.startswith("unrecognized arguments: --"):
            line += near(line.split()[2].partition("=")[0], known_flags(self))
        line = line if len(line) < 1500 else f"{line[:700]} ... {line[-700:]}"
        self.exit(2, f"{self.prog}: {line}\n")

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        dashed = [re.sub(r"^--\w+", lambda name: name[0].replace("_", "-"), arg) for arg in args]
        return super().parse_known_args(dashed, namespace)

    def print_help(self, file=None):
        self.say(self.format_help(), "help")

    def say(self, text: str, what: str) -> None:
        """Print what needs no work."""
        try:
            write(text.rstrip("\n"), what)
        except OSError as error:
            self.error(str(error))

    def add_option(self, option: Option, note: str = "") -> None:
        """Add the flag of a setting. What is not given is absent: no default stands here again."""

        def convert(text: str):
            return read_value(option, text)

        convert.__name__ = option.kind.__name__  # which argparse's message names
        choices = f" ({' | '.join(option.choices)})" if option.choices else ""
        how = {"type": convert, "metavar": "X"}
        if option.kind is bool:
            how = {"action": BooleanOptionalAction}
        how |= {"default": SUPPRESS, "help": f"{option.meaning}{choices}{note}".replace("%", "%%")}
        self.add_argument(flag(option.name), **how)


def known_flags(parser: ArgumentParser) -> list[str]:
    """Its flags, and those of its commands."""
    commands = [a.choices.values() for a in parser._actions if a.nargs == PARSER]
    return [*parser._option_string_actions, *chain(*map(known_flags, chain(*commands)))]


def near(word: str, known: Iterable[str]) -> str:
    """What a message adds about a word that is like one that is known."""
    found = difflib.get_close_matches(word, known, 1, 0.7)
    return f"; did you mean {found[0]}?" if found else ""


def read_value(option: Option, text: str):
    """The value of a setting that a text stands for; ValueError if it is of another type."""
    if text == "none" and option.optional:
        return None
    if option.kind is bool:
        return {"true": True, "false": False}.get(text, text)
    return text if option.kind is LLaDA else option.kind(text)  # `open_model` loads what is there


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def shown(default: object) -> str:
    return "none" if default is None else str(default)


def command_line() -> Parser:
    about = "Answer a prompt with a diffusion language model."
    parser = Parser(prog="dllm.py", description=about, allow_abbrev=False)
    for words, meaning in FLAGS.items():
        name, _, metavar = words.partition(" ")
        how = {"metavar": metavar, **VALUES.get(name, {})} if metavar else {"action": "store_true"}
        parser.add_argument(name, help=meaning, **how)
    for option in options(Settings).values():
        parser.add_option(option, "" if option.default is None else f" (default {option.default})")
    takers: dict[str, tuple[Option, list[str]]] = {}
    for name, builder in STRATEGIES.items():
        for option in options(builder).values():
            _, defaults = takers.setdefault(option.name, (option, []))
            defaults.append(f"{name} {shown(option.default)}")
    own = {words.partition(" ")[0] for words in FLAGS}
    for option, defaults in takers.values():
        if flag(option.name) in own:  # of a file of one's own: it has its default here
            continue
        parser.add_option(option, f" [default in {', '.join(defaults)}]")
    parser.set_defaults(flags=(*options(Settings), *takers), split=None)
    return parser


def summary(builder: Callable) -> str:
    """The first sentence of a builder's docstring: its paper and what it does."""
    return " ".join((inspect.getdoc(builder) or "").partition("\n\n")[0].split())


def strategy_table() -> str:
    """Every strategy with its settings, their defaults and meanings, as text."""
    lines = []
    for name, builder in STRATEGIES.items():
        lines.append(f"{name}\n  {summary(builder)}")
        for option in options(builder).values():
            lines.append(f"    {flag(option.name)} {shown(option.default)}: {option.meaning}")
    return "\n".join(lines)


def check_flags(args: Namespace) -> None:
    """Raise ValueError for flags that do not go together."""
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    for way, others in APART.items():
        if way in given and (clash := [other for other in others if other in given]):
            raise ValueError(f"{flag(clash[0])} has no meaning with {flag(way)}")
    for name, needed in TOGETHER.items():
        if name in given and needed not in given:
            raise ValueError(f"{flag(name)} needs {flag(needed)}")
    alone = [name for name in ("chat", "int8") if name in given]
    if args.split and (alone or args.prompt == "-"):
        raise ValueError(f"--{alone[0] if alone else 'prompt -'} works in one process only")


# --- the model ----------------------------------------------------------------------------------


def embedded(strategy: str) -> dict[str, Path]:
    """What of weights/ a strategy takes where nothing else is named: model, adapter, settings."""
    own = getattr(STRATEGIES.get(strategy), "embedded", {})
    return {name: TINY.with_name(file) for name, file in ({"model": TINY.name} | own).items()}


def made_for(strategy: str) -> tuple[Path, Path | None]:
    """The embedded model, and its adapter, that a strategy is meant for."""
    return embedded(strategy)["model"], embedded(strategy).get("adapter")


def guide_for(strategy: str) -> Path | None:
    """The embedded model that judges what the model writes, if a strategy has a second one."""
    return embedded(strategy).get("guide")


def has_weights(strategy: str) -> bool:
    """Whether all that a strategy is meant for is embedded."""
    if not are_there(*made_for(strategy), guide_for(strategy)):
        return False
    with suppress(ValueError):  # of files that it reads itself
        return bool(build(strategy))
    return False


def are_there(*folders: Path | None) -> bool:
    return all(folder.is_dir() and any(folder.iterdir()) for folder in folders if folder)


def train_it(folder: Path) -> str:
    """What a message says about embedded weights that are not there."""
    kind = folder.name.removeprefix(TINY.name).replace("-", " ")  # of "tiny-ar" " ar"
    return f"train it by python -m lab.train{kind} --out weights/{folder.name}"


def load_guide(strategy: str, guide: str | None = None, device=None, dtype=None) -> dict:
    """The setting `guide` of a strategy that has one: a folder, an id or the embedded model."""
    theirs = guide or guide_for(strategy)
    return {"guide": load_model(theirs, None, device, dtype)} if theirs else {}


def find_model(args: Namespace) -> tuple:
    """The tokenizer of --model, its config, and what loads it; an oracle is all of these itself."""
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # which the hub's library reads when it is first needed
    if guide := guide_for(args.strategy):
        given = getattr(args, "guide", None)
        if not given and not are_there(guide):
            needs = f"{args.strategy} needs a guide: give --guide"
            raise ValueError(f"{needs}, or {train_it(made_for('ar')[0])}")
        load_config(given or guide)  # is it there? Better asked before the model is loaded
    if args.model is None:
        model, adapter = made_for(args.strategy)
        if missing := [folder for folder in (model, adapter) if not are_there(folder)]:
            needs = f"{args.strategy} needs weights: give --model"
            raise ValueError(f"{needs}, or {train_it(missing[0])}")
        args.model, args.adapter = model, args.adapter or adapter
    if str(args.model).startswith("oracle:"):
        for name in ("adapter", "device", "dtype", "int8", "raw"):
            if getattr(args, name):
                raise ValueError(f"--{name} is for checkpoints: an oracle has no weights")
        from lab.oracle import Oracle

        oracle = Oracle(args.model.removeprefix("oracle:"))
        return oracle, oracle.config, lambda: oracle
    how = (args.adapter, args.device, DTYPES.get(args.dtype), args.int8, args.split)
    return load_tokenizer(args.model), load_config(args.model), lambda: load_model(args.model, *how)


def open_model(args: Namespace, settings: dict, load: Callable[[], LLaDA]) -> LLaDA:
    """Load the model, and into the settings the guide of a strategy that has one."""
    model = load()
    settings |= load_guide(args.strategy, settings.get("guide"), model.device, model.dtype)
    use_threads(model)  # before `prepare` compiles: compiled code holds for one number of threads
    return model


def use_threads(model: LLaDA) -> None:
    """A small model gains 1.3x by a second core if both are idle, and loses 15x if one is busy."""
    if model.device.type == "cpu" and model.config.d_model < 512:
        torch.set_num_threads(1)


def encode(tokenizer, prompt: str, raw: bool = False) -> list[int]:
    """Token ids of a question in the chat template, or of the text as it is."""
    if raw:
        return tokenizer.encode(prompt)
    return tokenizer.encode_chat([{"role": "user", "content": prompt}])


def print_counters(args: Namespace, counters: dict, device: torch.device, seed: int) -> None:
    """Print what it took, on stderr."""
    memory = peak_memory(device)
    counters = {"strategy": args.strategy} | counters
    counters |= {"peak_memory_mb": memory and round(memory / 1e6), "seed": seed}
    plain = "  ".join(f"{name} {value}" for name, value in counters.items())
    print(json.dumps(counters) if args.json else plain, file=sys.stderr)


def peak_memory(device: torch.device) -> float | None:
    """Most bytes held at once: on the GPU, or by this process; None where no system tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(ImportError):  # on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# --- what is asked ------------------------------------------------------------------------------


def run() -> None:
    if sys.stderr is None:  # closed by who started the program: print would write to stdout instead
        sys.stderr = open(os.devnull, "w")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)


def main(arguments: list[str] | None = None) -> None:
    """Answer: the text on stdout, all else on stderr; exit code 2 if anything is wrong."""
    early = Parser(prog="dllm.py", add_help=False, allow_abbrev=False)
    early.add_argument("--strategy", default=DEFAULT)
    try:
        # a strategy of one's own: its settings are flags, too
        own_rule.register(early.parse_known_args(arguments)[0].strategy)
    except ValueError as error:
        early.error(str(error))
    parser = command_line()
    args = parser.parse_args(arguments)
    if args.strategy == "list":
        return parser.say(strategy_table(), "list")
    if "LOCAL_RANK" not in os.environ:
        return carry_out(parser, args)
    from lab import parallel  # torchrun has started this

    with parallel.together(parser, args, one_model=args.prompts is None):
        carry_out(parser, args)


@own_rule.faults()
def carry_out(parser: Parser, args: Namespace) -> None:
    """Check what was asked, then do it."""
    settings = {name: value for name, value in vars(args).items() if name in args.flags}
    try:
        check_flags(args)
        if args.chat:
            from lab.chat import chat as way
        elif args.prompts is not None:
            from lab.batch import batch as way
        else:
            way = single
        work = way(args, settings)
    except ValueError as error:
        parser.error(str(error))
    try:
        with own_rule.faults():
            work()
    except (StepLimit, ValueError, torch.OutOfMemoryError, OSError) as error:
        parser.error(str(error))


def check_name(strategy: str) -> None:
    """Raise ValueError, with what may have been meant, if there is no such strategy or rule."""
    own_rule.register(strategy)
    if strategy not in STRATEGIES:
        known = f"choose one of {', '.join(STRATEGIES)}{near(strategy, STRATEGIES)}"
        raise ValueError(f"unknown strategy {brief(strategy)}: {known}")


def checked_plan(args, settings: dict, length: int | None = None) -> tuple[Strategy, Settings]:
    """The strategy and the settings of all strategies, checked; a guide has only a name so far."""
    check_name(args.strategy)
    return plan(args.strategy, settings | dict.fromkeys({"guide"} & set(settings)), length)


def single(args: Namespace, settings: dict) -> Callable[[], None]:
    """Check all there is to check; return what decodes one prompt, or one text with holes."""
    strategy, _ = checked_plan(args, settings, None if args.infill is None else 1)  # not yet known
    observe = observer(args, strategy)
    text, holes = args.prompt, None
    if text == "-":
        text = args.prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if text is not None:
        whole_text(text, "prompt")
    elif args.infill is None:
        raise ValueError("no prompt: give --prompt TEXT, or --prompt - to read standard input")
    tokenizer, config, load = find_model(args)
    if args.infill is not None:
        holes = infill.template(args.infill, tokenizer, config.mask_token_id)
    ids = infill.beginning(tokenizer) if text is None else encode(tokenizer, text, args.raw)
    check_prompt(ids, config, checked_plan(args, settings, holes and len(holes))[1].gen_length)
    model = open_model(args, settings, load)
    canvas = prepare(model, ids, args.strategy, settings, holes)

    def answer() -> None:
        result = finish(canvas, observe(stream(canvas), canvas, tokenizer))
        filled = result.tokens[0, result.prompt_length :].tolist()[: len(holes or ())]
        prompt = tokenizer.decode(ids, skip_special_tokens=False) + "\n" if args.show_prompt else ""
        write(prompt + tokenizer.decode(filled or result.answer()))
        print_counters(args, result.counters(), model.device, canvas.settings.seed)

    return answer


def observer(args: Namespace, strategy: Strategy) -> Callable:
    """(steps, canvas, tokenizer) -> the steps, seen by what the flags ask for; checked here."""
    watched, traced = args.explain or args.watch is not None, args.trace is not None
    if (watched or traced) and strategy.search:
        several = f"{args.strategy} decodes several canvases"
        raise ValueError(f"{several}: --watch, --explain and --trace follow one")
    require(args.watch is None or 0 <= args.watch <= 60, "watch", args.watch, "0 to 60 seconds")
    if traced:
        check_place("--trace", args.trace, ".jsonl", ".html")
        from lab.trace import trace
    if watched:
        from lab.watch import watch

    def observe(steps, canvas, tokenizer):
        declared = options(STRATEGIES[args.strategy]).items()
        own = {name: getattr(args, name, option.default) for name, option in declared}
        if traced:
            asked = {"question": args.infill if args.prompt is None else args.prompt}
            steps = trace(steps, canvas, tokenizer, args.trace, args.strategy, own, **asked)
        if watched:
            steps = watch(steps, canvas, tokenizer, own, args.watch, args.explain)
        return steps

    return observe
