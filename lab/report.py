"""How measurements are shown: aligned tables that are Markdown too, what they ran on, and pages of results, which re-measure themselves.

Left out on purpose: a database of results. A table in docs/ stands under the command that made it, and
`python -m lab.bench results` runs these commands again and writes what they print in their place.
"""

import contextlib
import io
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from model import LLaDA

MEASURED = re.compile(r"^    python -m lab\.bench ([^\n]+)\n\n<!-- measured -->\n(.*?)<!-- end -->$", re.MULTILINE | re.DOTALL)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up: the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, widths))) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def about(model: LLaDA) -> str:
    return ran_on(model.device, model.dtype)


def ran_on(device: torch.device, dtype: torch.dtype) -> str:
    """What a measurement there, in this dtype, ran on, in one line."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        where = f"{processor()}, {threads} thread{'s' * (threads > 1)}"
    return f"torch {torch.__version__}, Python {platform.python_version()}, {where}, {str(dtype).removeprefix('torch.')}"


def processor() -> str:
    """The processor's name where the system tells it (Linux does in a file), else its kind."""
    with contextlib.suppress(OSError):
        if name := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return f"{name[1]} ({platform.machine()})"
    return platform.processor() or platform.machine()


def replace_file(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = file.with_name(file.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def remeasure(files: list[Path], only: str, run: Callable[[list[str]], None]) -> None:
    """Run the commands of these pages again whose text holds `only`, and put what they print under them, one table at a time."""
    commands = [(file, command) for file in files for command, _ in MEASURED.findall(file.read_text(encoding="utf-8")) if only in command]
    if not commands:
        raise ValueError(f"{' and '.join(map(str, files))}: no command with {only!r} that is followed by <!-- measured -->")
    for file, command in commands:
        print(f"python -m lab.bench {command}", file=sys.stderr)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run(shlex.split(command))
        page = file.read_text(encoding="utf-8")  # anew: another process may have re-measured another table of it
        old = next(match for match in MEASURED.finditer(page) if match[1] == command)
        replace_file(file, page[: old.start(2)] + printed.getvalue() + page[old.end(2) :])
