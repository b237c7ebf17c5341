"""How measurements are shown: Markdown tables that line up, and pages that measure themselves anew.

Left out on purpose: a database of results. A table in docs/ stands under the command that made it,
and `python -m lab.bench results` runs these commands again and writes what they print in their
place.
"""

import contextlib
import io
import math
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from lab.files import replacing, write

MEASURED = re.compile(
    r"(?ms)^    python -m lab\.bench ([^\n]+)\n\n<!-- measured -->\n(.*?)<!-- end -->$"
)


def table(rows: list[dict[str, str | float]]) -> str:
    """A Markdown table whose columns line up: the first to the left, figures to the right."""
    texts = [list(rows[0]), *([short(cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts)]
    texts.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for first, *figures in texts:
        cells = [first.ljust(widths[0]), *map(str.rjust, figures, widths[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def latex(rows: list[dict[str, str | float]]) -> str:
    """The same as a tabular."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\^{}"}
    special = str.maketrans(special | {"\\": r"\textbackslash{}", "<": "$<$", ">": "$>$"})
    lines = [list(rows[0]), *([short(cell) for cell in row.values()] for row in rows)]
    texts = [" & ".join(cell.translate(special) for cell in line) + r" \\" for line in lines]
    texts.insert(1, r"\hline")
    shape = "l" + "r" * (len(rows[0]) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{shape}}}", *texts, r"\end{tabular}"])


def show(rows: Iterable[dict[str, str | float]]) -> None:
    """Print a table of the rows that come; after Ctrl-C, of those that came before it."""
    found, stopped = [], None
    try:
        for row in rows:
            found.append(row)
    except KeyboardInterrupt as error:
        stopped = error
    if found:
        write(table(found), "table")
    if stopped:
        raise stopped


def short(value: str | float) -> str:
    """A fraction with three digits, or all before the point; anything else as it is."""
    if not isinstance(value, float) or value <= 0:
        return str(value)
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def about(device: torch.device, dtype: torch.dtype) -> str:
    """What a measurement there, in this dtype, ran on, in one line."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{versions}, {where}, {str(dtype).removeprefix('torch.')}"


def processor() -> str:
    """The processor's name where the system tells it (Linux does in a file), and the threads."""
    name, threads = platform.processor() or platform.machine(), torch.get_num_threads()
    with contextlib.suppress(OSError):
        told = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = f"{told[1]} ({platform.machine()})" if told else name
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def replace_file(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(file) as place:
        place.write_text(text, encoding="utf-8")


def remeasure(files: list[Path], only: str, run: Callable[[list[str]], None]) -> None:
    """Run the commands of these pages again that hold `only`, and put there what they print."""
    pages = {file: MEASURED.findall(file.read_text(encoding="utf-8")) for file in files}
    commands = [(file, command) for file in files for command, _ in pages[file] if only in command]
    if not commands:
        names = " and ".join(map(str, files))
        raise ValueError(f"{names}: no command with {only!r} that is followed by <!-- measured -->")
    for file, command in commands:
        print(f"python -m lab.bench {command}", file=sys.stderr)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            run(shlex.split(command))
        page = file.read_text(encoding="utf-8")  # anew: another process may have changed it
        old = next(match for match in MEASURED.finditer(page) if match[1] == command)
        replace_file(file, page[: old.start(2)] + printed.getvalue() + page[old.end(2) :])
