"""The flags that look at a decode, --watch, --explain and --trace: checked before any work, then put around its steps.

Each observer takes an iterator of steps and passes it on, and is imported only when its flag asks for it.
"""

from argparse import Namespace
from collections.abc import Iterator

from options import options, require

from dllm import Canvas, Step, Strategy, find_builder


def check_flags(args: Namespace, strategy: Strategy) -> None:
    """Raise ValueError, naming the flag, for what could not be watched or written."""
    if strategy.search:
        raise ValueError(
            f"{args.strategy} decodes several canvases: --watch, --explain and --trace follow one"
        )
    require(args.watch is None or 0 <= args.watch <= 60, "watch", args.watch, "0 to 60 seconds")
    if args.trace is not None:
        from lab.trace import check_path

        check_path(args.trace)


def observe(stream: Iterator[Step], canvas: Canvas, tokenizer, args: Namespace) -> Iterator[Step]:
    """The same steps, seen by whatever the flags ask for."""
    own = {
        name: getattr(args, name, option.default)
        for name, option in options(find_builder(args.strategy)).items()
    }
    if args.trace is not None:
        from lab.trace import trace

        stream = trace(stream, canvas, tokenizer, args.trace, args.strategy, own)
    if args.explain or args.watch is not None:
        from lab.watch import watch

        stream = watch(stream, canvas, tokenizer, own, args.watch, args.explain)
    return stream
