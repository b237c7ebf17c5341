"""Grade files in another process, which may hang or die; nothing here takes long to import."""

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

from course.names import begun

PATIENCE = 60  # seconds without a word; a check takes less than ten on a slow machine


def work(files: list[Path], connection) -> None:
    """What the other process does: sends the name of each check as it begins, and each grade."""
    sys.stdout = sys.stderr  # what a student's file prints does not mix with what is asked for
    import torch

    from course.grading import grade

    torch.set_num_threads(1)  # the models are so small that a second thread only waits
    for file in files:
        connection.send(grade(file, connection.send))


def graded(files: list[Path]) -> Iterator[dict]:
    """The grade of each file. A process that is silent too long, or dies, is replaced."""
    context, files = multiprocessing.get_context("spawn"), list(files)
    while files:
        here, there = context.Pipe()
        process = context.Process(target=work, args=(files, there), daemon=True)
        process.start()
        there.close()
        check = "loads"
        try:
            while files:
                if not here.poll(PATIENCE):
                    raise TimeoutError(f"ended after {PATIENCE} s: an endless loop, or a wait?")
                told = here.recv()
                if isinstance(told, dict):
                    files.pop(0)
                    yield told
                else:
                    check = told
        except (EOFError, TimeoutError) as error:
            process.kill()
            process.join()
            message = str(error) or f"its process ended with code {process.exitcode}"
            yield begun(files.pop(0)) | {"status": "failed", "check": check, "message": message}
        process.join()
