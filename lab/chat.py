"""A conversation in the terminal: `--chat`. A line is a turn; /new forgets the turns so far, /quit or the end of the input ends it.

The model sees every turn anew: a diffusion model's cache of a prompt holds only for the answer it was made beside. Left out on purpose:
turns of several lines.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator

import torch
from options import check_prompt

from dllm import StepLimit, finish, prepare, steps
from lab.command_line import checked_plan, find_model, open_model, tell, whole_text, write

HELP = "/new begins another conversation, /quit ends it"


def chat(args: Namespace, settings: dict) -> Callable[[], None]:
    """Check all there is to check before the first turn, and return what holds the conversation."""
    strategy, chosen = checked_plan(args, settings)
    if observed := args.explain or args.watch is not None:
        from lab.observe import check_flags, observe

        check_flags(args, strategy)
    tokenizer, config, load = find_model(args)
    check_prompt(
        tokenizer.encode_chat([{"role": "user", "content": "?"}]), config, chosen.gen_length
    )
    model = open_model(args, settings, load)

    def talk() -> None:
        messages: list[dict] = []
        for line in turns():
            if line == "/new":
                messages.clear()
                continue
            asked = [*messages, {"role": "user", "content": line}]
            try:
                if whole_text(line, "line").startswith("/"):
                    raise ValueError(f"{line.split()[0]} is unknown: {HELP}")
                canvas = prepare(model, tokenizer.encode_chat(asked), args.strategy, settings)
                result = finish(
                    canvas,
                    observe(steps(canvas), canvas, tokenizer, args) if observed else steps(canvas),
                )
            except (
                ValueError,
                StepLimit,
                torch.OutOfMemoryError,
            ) as error:  # of this turn: the conversation goes on
                print(" ".join(str(error).split()), file=sys.stderr)
                continue
            except KeyboardInterrupt:
                print("stopped; the turn is forgotten", file=sys.stderr)
                continue
            answer = tokenizer.decode(result.answer())
            write(answer)
            tell(args, result.counters(), model.device, chosen.seed)
            messages[:] = [*asked, {"role": "assistant", "content": answer}]

    return talk


def turns() -> Iterator[str]:
    """The lines that are not empty, from a person or a pipe, up to /quit or the end."""
    sys.stdin.reconfigure(
        encoding="utf-8", errors="surrogateescape"
    )  # one bad line must not cost those after it
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if asks:
        try:
            import readline  # noqa: F401  input() takes its editing and history from it
        except ImportError:  # Windows
            pass
        print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> " if asks else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        if line == "/quit":
            return
        if line:
            yield line
