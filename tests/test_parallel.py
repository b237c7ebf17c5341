"""Two processes under torchrun give the answers of one: a model that is split between them, prompts and problems that are shared out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import bench, command_line, parallel
from test_command_line import SHORT, run

ROOT = Path(__file__).parent.parent
PROMPTS = ("hello", "a longer story", "what", "why not", "abc")
TASKS = ["--task", "add,compare", "--limit", "5", "--gen-length", "32", "--json"]
COMPARE = ["compare", "--strategies", "fast-dllm,streaming", *TASKS]


def torchrun(*arguments, processes: int = 2) -> subprocess.CompletedProcess:
    """Run a script of this project in several processes that share one core."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)


def begun(whole: bytes) -> bytes:
    """An answer and half of the next, as a run that was stopped leaves them."""
    return whole.splitlines(keepends=True)[0] + b'{"id": 5, "pro'


@pytest.fixture(scope="module")
def folder(saved, tmp_path_factory) -> Path:
    """Prompts, and the answers to them by one process."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "in.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    command_line.main(batch(saved, folder, "one.jsonl"))
    (folder / "two.jsonl").write_bytes(begun((folder / "one.jsonl").read_bytes()))
    return folder


def batch(saved, folder, out) -> list[str]:
    files = ["--prompts", str(folder / "in.jsonl"), "--out", str(folder / out)]
    return ["--model", str(saved), *files, "--batch-size", "1", "--json", *SHORT]


@pytest.fixture(scope="module")
def outcomes(saved, folder) -> list[dict[str, tuple[str, str, int]]]:
    """Of each of two processes: stdout, stderr and exit code of each command, from one start of torchrun for them all."""
    single = ["--model", str(saved), "--prompt", "hello", "--json", *SHORT]
    commands = {
        "split": ["dllm.py", single],
        "prompts": ["dllm.py", batch(saved, folder, "two.jsonl")],
        "problems": ["lab.bench", COMPARE],
        "int8": ["dllm.py", [*single, "--int8"]],
        "oracle": ["lab.bench", ["oracle"]],
    }
    (folder / "commands.json").write_text(json.dumps(list(commands.values())))
    done = torchrun(ROOT / "tests" / "two_processes.py", folder / "commands.json", folder)
    assert done.returncode == 0, done.stderr
    return [dict(zip(commands, json.loads((folder / f"{rank}.json").read_text()))) for rank in (0, 1)]


def only(outcomes, name: str) -> tuple[str, str, int]:
    """What the first process says; the other must be silent, and end alike."""
    (out, err, code), other = (of[name] for of in outcomes)
    assert other == ["", "", code], other
    return out, err, code


def test_a_split_model_gives_the_same_answer(saved, outcomes, capsys):
    """Would catch heads that are dealt out wrongly, a cache of all heads, a sum that is missing, and an answer that is printed twice."""
    shared, counters, code = only(outcomes, "split")
    out, err, _ = run(capsys, "--model", saved, "--prompt", "hello", "--json", *SHORT)
    assert (shared, code) == (out, 0) and json.loads(counters)["forwards"] == json.loads(err)["forwards"]


def test_prompts_are_shared_out_and_a_stopped_run_goes_on(folder, outcomes):
    """Would catch a prompt that is answered by both or by none, lines that are mixed, and a file that is begun by each."""
    _, err, code = only(outcomes, "prompts")
    one, two = ((folder / name).read_bytes().splitlines() for name in ("one.jsonl", "two.jsonl"))
    assert code == 0 and sorted(one) == sorted(two) and json.loads(err.splitlines()[-1])["questions"] == 4


def figures(text: str) -> dict:
    """What a comparison counts, without what it times."""
    timed = ("tokens_per_second", "speed_up")
    of_tasks = json.loads(text)["figures"].items()
    return {task: {label: {k: v for k, v in f.items() if k not in timed} for label, f in of.items()} for task, of in of_tasks}


def test_problems_are_shared_out(outcomes, capsys):
    """Would catch a score that counts one process's problems, or each problem twice."""
    out, _, code = only(outcomes, "problems")
    bench.main(COMPARE)
    assert code == 0 and figures(out) == figures(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["int8", "oracle"])
def test_what_works_in_one_process_is_refused_once(outcomes, name):
    """Would catch a line from each process, and a process that waits for the others for ever."""
    _, err, code = only(outcomes, name)
    assert code == 2 and err.count("\n") == 1 and f"{name} works in one process only" in err


def test_a_refusal_ends_torchrun_and_is_heard(saved):
    """Would catch a model that cannot be dealt out, and a first process that torchrun ends before it has said so."""
    done = torchrun("dllm.py", "--model", saved, "--prompt", "a", *SHORT, processes=3)
    lines = [line for line in done.stderr.splitlines() if line.startswith("dllm.py:")]
    assert done.returncode != 0 and done.stdout == ""
    assert lines == ["dllm.py: --nproc-per-node is 3, expected a number that divides the model's 4 (n_heads)"], done.stderr


def test_one_process_gathers_from_itself():
    """Would catch a run without torchrun that waits for others."""
    assert parallel.processes() == 1 and parallel.rank() == 0 and parallel.gathered("a") == ["a"]


def test_processes_that_others_started_are_not_torchruns(saved, capsys, monkeypatch):
    """Would catch a traceback, or a wait without end, on a cluster whose scheduler sets WORLD_SIZE for every job."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert parallel.processes() == 1 and run(capsys, "--model", saved, "--prompt", "hello", *SHORT)[2] == 0
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert parallel.processes() == 4


@pytest.mark.parametrize(
    "device, gpus, here, found",
    [
        (None, 2, 2, "cuda:1"),
        ("cuda", 3, 2, "cuda:1"),
        (None, 0, 2, None),
        ("cpu", 1, 2, "cpu"),
        ("cuda:1", 0, 2, "cuda:1"),
        ("mps", 0, 2, "mps"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, device, gpus, here, found):
    """Would catch two processes on one GPU, and a CPU, asked for by name, that is refused where there is a GPU."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    for name, value in {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": here, "WORLD_SIZE": here}.items():
        monkeypatch.setenv(name, str(value))
    assert parallel.own_device(device) == found


TOO_FEW = "--nproc-per-node is 2, expected at most 1, a GPU for each process, or more with --device cpu"
NUMBERED = "--device is 'cuda:0', expected cuda, which gives each process a GPU of its own, or cpu"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("program", [command_line, bench])
@pytest.mark.parametrize("device, why", [([], TOO_FEW), (["--device", "cuda"], TOO_FEW), (["--device", "cuda:0"], NUMBERED)])
def test_more_processes_than_gpus_are_refused(monkeypatch, capsys, device, why, program, first):
    """Would catch one process that picks nccl while the other picks gloo: each then waits for the other."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(parallel.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend: pytest.fail("joined the others"))
    for name, value in {"RANK": not first, "LOCAL_RANK": not first, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(int(value)))
    with pytest.raises(SystemExit) as ended:
        program.main([*(["compare"] if program is bench else ["--prompt", "a"]), *device])
    name = "dllm.py" if program is command_line else "lab.bench"
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "") and err.startswith(name if first else "")
    assert err.endswith(f": {why}\n") if first else err == ""
    assert err.count("\n") == first
