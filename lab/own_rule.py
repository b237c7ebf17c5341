"""A commit rule of your own, as a strategy: FILE.py:RULE is the function RULE of that file.

The file is run. Left out on purpose: views and schedules of one's own, which a Strategy that is put
together in Python, or a file in strategies/, has room for.
"""

import runpy
from pathlib import Path

from strategies import STRATEGIES, Strategy, named


def register(name: str) -> None:
    """Enter the rule that FILE.py:RULE names into STRATEGIES under this name; other names are left
    alone. Raises ValueError if there is no such file or function, or if the file fails."""
    file, _, function = name.rpartition(":")
    if name in STRATEGIES or not file.endswith(".py"):
        return
    from strategies.fast_dllm import CacheName, cached  # systems, whose files may be missing
    from strategies.llada import serial

    if not Path(file).is_file():
        raise ValueError(f"there is no file {file}")
    try:
        rule = runpy.run_path(file).get(function)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{file} does not run: {type(error).__name__}: {error}") from None
    if not callable(rule):
        raise ValueError(f"{file} defines no function {function!r}")

    @named(name)
    def builder(cache: CacheName = "prefix") -> Strategy:
        """A rule of your own.

        cache: as in fast-dllm
        """
        return Strategy(rule, cached(cache), serial)
