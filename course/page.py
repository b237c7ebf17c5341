"""A page of two decodes of one story: with a student's parts, and with the project's own."""

from pathlib import Path
from types import SimpleNamespace

from course.checks import QUESTION, projects, split, tiny
from course.grading import DEFAULT, grader, load, refuse, said
from dllm import prepare, stream
from lab.trace import Recorder, write_page


def write(path: str, file: Path) -> None:
    """Write it; ValueError if the student's file cannot decode, or nothing is to be seen."""
    module = grader(file.stem)
    if not hasattr(module, "SEE"):
        raise ValueError(f"--page: {file.stem} has no decode to look at")
    try:
        refuse(file, DEFAULT | getattr(module, "IMPORTS", {}), module.PARTS)
        mine = records(module, load(file, module.PARTS), "yours")
    except NotImplementedError:
        raise ValueError(f"--page: {file} is not begun") from None
    except (Exception, SystemExit) as error:
        told = said(error, file).strip().splitlines()
        raise ValueError(f"{file}: {told[-1]}") from None
    try:
        write_page(path, [mine, records(module, projects(module.PARTS), "the project's")])
    except OSError as error:
        raise ValueError(f"--page {path} cannot be written: {error.strerror}") from None


def records(module, parts: SimpleNamespace, name: str) -> list[dict]:
    """The trace of a decode of the story."""
    model, tokenizer = getattr(module, "MODEL", tiny)()
    own, common = split({"gen_length": 64} | module.SEE)
    prompt = tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
    canvas = prepare(model, prompt, module.strategy(parts, **own), common)
    recorder = Recorder(canvas, tokenizer, 0)
    header = recorder.header(name, own, QUESTION)
    return [header, *map(recorder.forward, stream(canvas))]
