"""A conversation in the terminal: `--chat`. A line is a turn; /new forgets the turns so far, /quit
or the end of the input ends it.

The model sees every turn anew: a diffusion model's cache of a prompt holds only for the answer it
was made beside. Left out on purpose: turns of several lines.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch

from checkpoint import one_line
from dllm import StepLimit, check_prompt, finish, prepare, stream
from lab.command_line import checked_plan, encode, find_model, observer, open_model, print_counters
from lab.files import whole_text, write

HELP = "/new begins another conversation, /quit ends it"


def chat(args: Namespace, settings: dict) -> Callable[[], None]:
    """Check all there is to check before the first turn; return what holds the conversation."""
    strategy, chosen = checked_plan(args, settings)
    observe = observer(args, strategy)
    tokenizer, config, load = find_model(args)
    check_prompt(encode(tokenizer, "?"), config, chosen.gen_length)
    model = open_model(args, settings, load)

    def reply(messages: list[dict]) -> str:
        canvas = prepare(model, tokenizer.encode_chat(messages), args.strategy, settings)
        result = finish(canvas, observe(stream(canvas), canvas, tokenizer))
        answer = tokenizer.decode(result.answer())
        write(answer)
        print_counters(args, result.counters(), model.device, chosen.seed)
        return answer

    def talk() -> None:
        messages: list[dict] = []
        for line in turns():
            asked = [*messages, {"role": "user", "content": line}]
            try:
                if line == "/new":
                    messages = []
                    continue
                if whole_text(line, "line").startswith("/"):
                    raise ValueError(f"{line.split()[0]} is unknown: {HELP}")
                messages = [*asked, {"role": "assistant", "content": reply(asked)}]
            except (ValueError, StepLimit, torch.OutOfMemoryError) as error:
                print(one_line(str(error)), file=sys.stderr)  # the conversation goes on
            except KeyboardInterrupt:
                print("stopped; the turn is forgotten", file=sys.stderr)

    return talk


def turns() -> Iterator[str]:
    """The lines that are not empty, from a person or a pipe, up to /quit or the end."""
    # one bad line must not cost those after it
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if asks:
        with suppress(ImportError):  # on Windows
            import readline  # noqa: F401  input() takes its editing and history from it
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
