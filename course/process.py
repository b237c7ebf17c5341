"""Grade files in another process, which may hang or die; nothing here takes long to import."""

import io
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from course.names import begun
from lab.files import printable

PATIENCE = 60  # seconds without a word; a check takes less than ten on a slow machine
PRINTED = 20_000  # characters that a file may print; a rule is called some thousand times


class Shown(io.TextIOBase):
    """What a student's file prints, on stderr: no command for the terminal, and not without end."""

    def __init__(self):
        self.left = PRINTED

    def write(self, text: str) -> int:
        if self.left > 0:
            sys.__stderr__.write(printable(text[: self.left]))
            self.left -= len(text)
            if self.left <= 0:
                print(f"\n(more than {PRINTED} characters are not shown)", file=sys.__stderr__)
        return len(text)


def work(files: list[Path], connection) -> None:
    """What the other process does: sends the name of each check as it begins, and each grade."""
    import torch

    from course.grading import grade

    os.register_at_fork(after_in_child=lambda: os._exit(1))  # it would send a second grade
    for file in files:
        sys.stdout = sys.stderr = Shown()  # does not mix with what is asked for
        torch.set_num_threads(1)  # the models are so small that a second thread only waits
        torch.set_default_dtype(torch.float32)  # whatever the file before has set
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
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
            process.join(0 if str(error) else 5)  # what has ended says with which code
            process.kill()
            process.join()
            message = str(error) or f"its process ended with code {process.exitcode}"
            yield begun(files.pop(0)) | {"status": "failed", "check": check, "message": message}
        process.join()
