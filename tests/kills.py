"""Kill a run at a random moment, go on with it, and look: nothing half-written, nothing lost, nothing doubled.

A kind of fuzz.py: `python tests/fuzz.py kills --count 40`. Four jobs write files: --prompts, lab.train, --trace, and the bench's plot.
Each is first done whole, which says what must be there in the end and how long it takes; then it is begun, killed one to three times
(SIGKILL, or Ctrl-C) and done again to its end. When a kill comes is chance of the clock, too: a fault cannot always be had again.
"""

import faulthandler
import functools
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

import program
from conftest import save_checkpoint
from lab import trace
from lab.command_line import TINY

LONG = 300  # seconds, after which a run hangs; a machine may be slow


class Job(NamedTuple):
    module: str  # whose main() is called
    arguments: list[str]
    sound: Callable[[Path], None]  # raises an error if what a kill has left in the folder is not sound
    result: Callable[[Path], object]  # what is there when it is done


SHORT = ["--gen-length", "16", "--block-length", "8", "--strategy", "fast-dllm", "--threshold", "0.9"]
QUESTIONS = {f"q{i}": "abcdefgh "[: 1 + i % 7] + str(i) for i in range(12)}
SMALL = "--steps=8 --batch=4 --width=8 --layers=1 --heads=1 --ffn=8 --warmup=2 --save-every=3 --processes=1 --no-compile".split()


def lines(file: Path) -> list[dict]:
    """The records of a file of JSON lines whose last may be torn."""
    data = file.read_bytes() if file.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def answers(folder: Path) -> dict:
    records = lines(folder / "out.jsonl")
    assert len({record["id"] for record in records}) == len(records), "an answer twice"
    return {record["id"]: record for record in records}


def weights(folder: Path) -> dict:
    """Every file of the folders that training writes, all of them whole."""
    found = {}
    for file in (*folder.glob("run/*"), *folder.glob("out/*")):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:  # but not its notes, which name the folder
                found[file.name] = {name: tensors.get_tensor(name).tolist() for name in tensors.keys()}
        elif file.suffix == ".json":
            found[file.name] = json.loads(file.read_text())
        else:
            found[file.name] = None
    return found


def traced(folder: Path) -> list:
    """The records of a trace but for its times."""
    assert len(trace.read(folder / "run.jsonl")) == len(lines(folder / "run.jsonl"))
    return [record | {"ms": 0} for record in lines(folder / "run.jsonl")]


def sound_trace(folder: Path) -> None:
    if lines(folder / "run.jsonl"):  # the header at least
        traced(folder)


def page(folder: Path, end: bytes) -> bool:
    """Whether a file that is replaced is the old one, or a whole new one."""
    (file,) = (file for file in folder.glob("page.*") if file.suffix in (".html", ".svg"))
    data = file.read_bytes()
    assert data == b"old" or data.rstrip().endswith(end), f"{file.name} is neither the old one nor whole"
    return data != b"old"


@functools.cache
def jobs(model: str) -> dict[str, Job]:
    asked = ["--model", model, "--prompt", "abc 12?", *SHORT, "--trace"]
    compare = "compare --strategies fast-dllm --limit 1 --task add --gen-length 32 --plot {}/page.svg".split()
    html, svg = (functools.partial(page, end=end) for end in (b"</html>", b"</svg>"))
    prompts = ["--model", model, *SHORT, "--prompts", "{}/in.jsonl", "--out", "{}/out.jsonl", "--batch-size", "2"]
    return {
        "prompts": Job("lab.command_line", prompts, answers, answers),
        "train": Job("lab.train", [*SMALL, "--run={}/run", "--out={}/out"], weights, weights),
        "trace": Job("lab.command_line", [*asked, "{}/run.jsonl"], sound_trace, traced),
        "page": Job("lab.command_line", [*asked, "{}/page.html"], html, html),
        "bench": Job("lab.bench", [*compare, "--model", str(TINY)], svg, svg),
    }


def started(job: Job, folder: Path):
    """The job in a process of its own, once all is imported."""
    (folder / "ready").unlink(missing_ok=True)
    # tqdm's own lock is a semaphore, which a killed process leaves
    code = "import threading, tqdm; tqdm.tqdm.set_lock(threading.RLock()); "
    code += f"import pathlib, sys, {job.module} as module; pathlib.Path({str(folder / 'ready')!r}).touch(); "
    code += "main = getattr(module, 'run', module.main); main(); sys.stdout.flush(); raise SystemExit"
    arguments = [argument.replace("{}", str(folder)) for argument in job.arguments]
    process = program.start(arguments, code, stderr=folder / "stderr")
    until = time.monotonic() + LONG
    while not (folder / "ready").exists() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    return process


def ended(process, folder: Path, codes: tuple[int, ...]) -> str | None:
    """What is wrong with how a process has ended."""
    process.join(LONG)
    if process.is_alive():
        process.kill()
        return "it hangs"
    said = (folder / "stderr").read_text(errors="replace")
    if process.exitcode not in codes or "Traceback" in said:
        return f"exit code {process.exitcode}, {said[-300:]!r}"
    (folder / "stderr").unlink()
    return None


def prepared(folder: Path) -> None:
    (folder / "in.jsonl").write_text("".join(json.dumps({"id": name, "prompt": text}) + "\n" for name, text in QUESTIONS.items()))
    for name in ("page.html", "page.svg"):
        (folder / name).write_bytes(b"old")


@functools.cache
def whole(name: str, model: str) -> tuple[object, float]:
    """What a job leaves that nobody disturbs, and how many seconds it takes."""
    with tempfile.TemporaryDirectory() as folder:
        prepared(Path(folder))
        (Path(folder) / "page.svg" if name != "bench" else Path(folder) / "page.html").unlink()
        job = jobs(model)[name]
        process, began = started(job, Path(folder)), time.monotonic()
        wrong = ended(process, Path(folder), (0,))
        assert wrong is None, wrong
        return job.result(Path(folder)), time.monotonic() - began


@functools.cache
def checkpoint() -> str:
    kept.append(tempfile.TemporaryDirectory())
    save_checkpoint(Path(kept[0].name))
    return kept[0].name


kept: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def kills(rng: random.Random, folder: Path) -> tuple[str, str]:
    """One job, killed and gone on with: what was done, and how it ended."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # instead of the limit of one try: processes have limits of their own
    faulthandler.cancel_dump_traceback_later()
    name, model = rng.choice(("prompts", "prompts", "train", "train", "trace", "page", "bench")), checkpoint()
    job, (expected, seconds) = jobs(model)[name], whole(name, model)
    prepared(folder)
    (folder / "page.svg" if name != "bench" else folder / "page.html").unlink()
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        how, delay = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT)), rng.random() * seconds
        process = started(job, folder)
        time.sleep(delay)
        if process.is_alive():
            os.kill(process.pid, how)
        done.append(f"{how.name} after {delay:.2f} of {seconds:.2f} s")
        wrong = ended(process, folder, (-signal.SIGKILL, 0) if how == signal.SIGKILL else (130, 0))
        try:
            job.sound(folder)
        except Exception as error:
            wrong = wrong or f"{type(error).__name__}: {error}"
        if wrong:
            return f"{name}: {', '.join(done)}", wrong
    wrong = ended(started(job, folder), folder, (0,))
    if wrong is None and job.result(folder) != expected:
        wrong = f"another result than of a run that nobody disturbed; {sorted(file.name for file in folder.rglob('*'))}"
    return f"{name}: {', '.join(done)}", wrong or "answered"
