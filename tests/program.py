"""The program in a process of its own, forked from one that has loaded torch already: a start costs 0.1 s instead of 3.

What only a fresh interpreter shows (imports, `__main__`) needs a fresh one: test_command_line.test_it_runs_as_a_program.
"""

import multiprocessing
import os
import signal
import sys

PROCESSES = multiprocessing.get_context("forkserver")  # not fork: the tests' own process may hold threads, or a GPU
PROCESSES.set_forkserver_preload(["lab.command_line"])


def start(arguments, code="", stdout=os.devnull, stderr=os.devnull, **environment) -> multiprocessing.Process:
    """Run `python dllm.py` with these arguments, after a piece of Python, with its output in these files."""
    process = PROCESSES.Process(target=as_program, args=([str(a) for a in arguments], code, str(stdout), str(stderr), environment))
    process.start()
    return process


def run(arguments, code="", stdout=os.devnull, stderr=os.devnull, **environment) -> int:
    """The same, to its end: the exit code, negative for a signal."""
    process = start(arguments, code, stdout, stderr, **environment)
    process.join(120)
    return process.exitcode


def as_program(arguments, code, stdout, stderr, environment) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which processes in the background ignore, and their children with them
    for path, number in ((os.devnull, 0), (stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    sys.argv = ["dllm.py", *arguments]
    from lab import command_line

    exec(code, {})
    command_line.run()
