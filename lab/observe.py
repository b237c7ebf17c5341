"""The flags that look at a decode, --watch, --explain and --trace: checked before any work.

Each observer takes an iterator of steps and passes it on, and is imported only when its flag asks.
"""

from argparse import Namespace
from collections.abc import Callable

from dllm import Strategy, find_builder
from options import options, require


def observer(args: Namespace, strategy: Strategy) -> Callable:
    """What puts around the steps of a decode whatever the flags ask for; ValueError, naming the
    flag, for what could not be watched or written.

    It is called with the steps, their canvas and the tokenizer, and returns the same steps.
    """
    watched, traced = args.explain or args.watch is not None, args.trace is not None
    if (watched or traced) and strategy.search:
        several = f"{args.strategy} decodes several canvases"
        raise ValueError(f"{several}: --watch, --explain and --trace follow one")
    require(args.watch is None or 0 <= args.watch <= 60, "watch", args.watch, "0 to 60 seconds")
    if traced:
        from lab.trace import check_path, trace

        check_path(args.trace)
    if watched:
        from lab.watch import watch

    def observe(stream, canvas, tokenizer):
        declared = options(find_builder(args.strategy)).items()
        own = {name: getattr(args, name, option.default) for name, option in declared}
        if traced:
            stream = trace(stream, canvas, tokenizer, args.trace, args.strategy, own)
        if watched:
            stream = watch(stream, canvas, tokenizer, own, args.watch, args.explain)
        return stream

    return observe
