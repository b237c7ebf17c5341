"""Grade a student's file: load it, guard what it defines, run the checks of its exercise in order.

How an exercise is declared
  course/NN_name.py            what a student gets. The docstring begins `Exercise N, M minutes: `
                               and a title; functions raise NotImplementedError; hints come last.
  course/solutions/NN_name.py  one solution, which passes.
  course/grade/name.py         how it is graded:

    PARTS = {"quota": Part(quota, cells)}  # what the student writes: the project's own, and a form
    IMPORTS = {"strategies": {"rank"}}     # what may be imported besides DEFAULT; a set replaces
    def strategy(parts, **own): ...        # a Strategy out of such parts: the student's or PARTS'
    SEE = {"steps": 16}                    # settings of a decode to look at: --page
    CHECKS = {"worked table": check, ...}  # in the order in which they run

A form takes what the student's function returned, and what it was given, raises Wrong in a sentence
if that is of another type, shape or dtype, and returns it. A check takes the student's parts, by
name as attributes, and raises Wrong, whose message ends in drawn cells; what one returns is the
score. course/checks.py has those that most exercises share.

A student's function is handed tensors that are looked at again afterwards, and has SECONDS of
computing for a call. Left out on purpose: protection from malice. A file runs with all rights of
who grades it.
"""

import ast
import importlib
import inspect
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course.names import begun
from lab.files import printable

MOST = 4000  # characters of a message
SECONDS = 3  # of the processor's time that a call may take: a busy machine ends nobody's
LIBRARY = (
    "torch math typing types collections itertools functools operator dataclasses enum "
    "bisect heapq statistics fractions random string re copy time numpy __future__"
).split()
DEFAULT = {"kernels": {"Scores"}, "model": {"Pass", "Slots"}, "strategies": {"Window", "rank"}}


class Wrong(Exception):
    """What is wrong with a student's answer: a sentence, and cells that show it."""


class Refused(Wrong):
    """A file that is not graded."""


class Endless(BaseException):
    """A call took more than SECONDS. No Exception, so that `except Exception` does not hold it."""


class Part(NamedTuple):
    own: Callable  # the project's
    form: Callable[..., Any]  # (what was returned, *what was handed in) -> the same, checked


def grader(stem: str):
    """What grades the exercise NN_name, or the bug bN_name."""
    number, _, name = stem.partition("_")
    if number[0] != "b":
        return importlib.import_module(f"course.grade.{name}")
    bugs = importlib.import_module("course.grade.bugs")
    return SimpleNamespace(PARTS=bugs.PARTS, IMPORTS=bugs.IMPORTS, CHECKS=bugs.checks(number))


def grade(file: Path, tell: Callable[[str], None] = lambda check: None) -> dict:
    """Grade a file called NN_name.py. tell: is called with the name of each check that begins.

    Returns its status (passed, failed, not begun, refused), which checks it passed, the one that
    failed with its message, and the score.
    """
    found = begun(file)
    if not file.is_file():
        return found | {"message": f"there is no file {file}"}
    checks = {"loads": lambda parts: None}
    module, parts = grader(file.stem), None
    try:
        tell("loads")
        refuse(file, DEFAULT | getattr(module, "IMPORTS", {}), module.PARTS)
        parts, checks = load(file, module.PARTS), module.CHECKS
        score = None
        for found["check"], check in checks.items():
            tell(found["check"])
            score = check(parts) or score
            found["passed"].append(found["check"])
    except Refused as error:
        return found | {"status": "refused", "message": str(error)}
    except BaseException as error:
        if begins(error, file):
            return found | {"message": f"{where(error, file)}: this is for you to write"}
        return found | {"status": "failed", "message": said(error, file)}
    del found["check"]
    return found | {"status": "passed", "score": score}


# --- reading a student's file ---------------------------------------------------------------------


def refuse(file: Path, allowed: dict[str, set[str]], parts: dict[str, Part]) -> None:
    """Raise Refused for a file that takes what it is to write from the project, or could."""
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if getattr(error, "lineno", None) else ""
        raise Wrong(f"{file.name}{line} is no Python: {getattr(error, 'msg', error)}") from None
    for node in ast.walk(tree):
        taken = []
        if isinstance(node, ast.Import):
            taken = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            taken = [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
        elif isinstance(node, ast.Name) and node.id in ("__import__", "exec", "eval"):
            raise Refused(f"{file.name}:{node.lineno} calls {node.id}: import by name, at the top")
        for module, what in taken:
            if module.partition(".")[0] in LIBRARY or what in allowed.get(module, ()):
                continue
            line = f"{file.name}:{node.lineno} imports {module}{'.' + what if what else ''}"
            known = [f"{name} from {m}" for m in allowed for name in sorted(allowed[m])]
            yours = f"{' and '.join(parts)} is to be your own"
            raise Refused(
                f"{line}: {yours}. What you may import: torch, the plain modules of Python, "
                f"and of this project {', '.join(known)}"
            )


def load(file: Path, parts: dict[str, Part]) -> SimpleNamespace:
    """Run the file; the student's functions, each guarded."""
    names = {"__name__": file.stem, "__file__": str(file)}
    with limited(f"{file.name}, as it is loaded,", file):
        exec(compile(file.read_bytes(), str(file), "exec"), names)
    mine = SimpleNamespace()
    for name, part in parts.items():
        if not callable(names.get(name)):
            raise Wrong(f"{file.name} defines no function {name}")
        setattr(mine, name, guarded(name, names[name], part.form, file))
    return mine


def guarded(name: str, function: Callable, form: Callable, file: Path) -> Callable:
    """The function, within limits, with what it was given looked at again, and its result checked.

    What is handed out are the tensors themselves: a rule that changes them would change the loop's.
    """

    names = list(inspect.signature(function).parameters)

    def call(*given, **settings):
        before = [(what, tensor, tensor.clone()) for what, tensor in tensors(given, names)]
        with limited(name, file):
            result = form(function(*given, **settings), *given)
        for what, tensor, was in before:
            if not torch.equal(tensor, was):
                tensor.copy_(was)
                raise Wrong(f"{name} changed {what}, which it was handed: work on a copy")
        return result

    return call


def tensors(given, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in arguments that are called so, and in their fields, with a name for each."""
    for name, value in zip(names, given):
        if isinstance(value, Tensor):
            yield name, value
        else:
            own = value._asdict() if hasattr(value, "_asdict") else getattr(value, "__dict__", {})
            yield from ((f"{name}.{key}", t) for key, t in own.items() if isinstance(t, Tensor))


@contextmanager
def limited(name: str, file: Path):
    """End what runs within, in the student's file, after SECONDS of the processor's time."""

    def ring(signum: int, frame: FrameType | None):
        while frame and frame.f_code.co_filename != str(file):
            frame = frame.f_back
        line = f" It was at {file.name}:{frame.f_lineno}." if frame else ""
        raise Endless(f"{name} has computed for {SECONDS} s: an endless loop?{line}")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)  # again each second: a bare except may hold it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --- what is told of an error ---------------------------------------------------------------------


def where(error: BaseException, file: Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f"{file.name}:{lines[-1]}" if lines else file.name


def begins(error: BaseException, file: Path) -> bool:
    """Whether a stub's own `raise NotImplementedError` was met; torch raises some of its own."""
    *_, last = traceback.extract_tb(error.__traceback__)
    unwritten = last.filename == str(file) and "NotImplementedError" in (last.line or "")
    return isinstance(error, NotImplementedError) and unwritten


def said(error: BaseException, file: Path) -> str:
    """A sentence, or a traceback that begins in the student's file, for a terminal."""
    text = printable(told(error, file))
    return text if len(text) <= MOST else f"{text[: MOST // 2]}\n[...]\n{text[-MOST // 2 :]}"


def told(error: BaseException, file: Path) -> str:
    if isinstance(error, (Wrong, Endless)):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if frame.filename == str(file)), None)
    if first is None and isinstance(error, ValueError):  # the decoder's own sentence
        return str(error)
    shown = f"{file.name}: " if first is None else "".join(traceback.format_list(frames[first:]))
    last = traceback.TracebackException.from_exception(error).format_exception_only()
    return f"{shown}{''.join(last)}".rstrip()
