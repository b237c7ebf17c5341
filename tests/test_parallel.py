"""Two processes under torchrun give the answers of one: a model that is split between them, prompts and problems that are shared out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_command_line import SHORT, run

from lab import parallel

ROOT = Path(__file__).parent.parent


def torchrun(*arguments, processes: int = 2) -> subprocess.CompletedProcess:
    """Run a script or a module of this project in several processes that share one core."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("hello", "a longer story", "what", "why not", "abc")))
    return path


def test_a_split_model_gives_the_same_answer(saved, capsys):
    """Would catch heads that are dealt out wrongly, a cache of all heads, a sum that is missing, and an answer that is printed twice."""
    arguments = ["--model", saved, "--prompt", "hello", "--json", *SHORT]
    done = torchrun("dllm.py", *arguments)
    out, err, _ = run(capsys, *arguments)
    assert done.returncode == 0 and done.stdout == out, done.stderr
    counters = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert len(counters) == 1 and counters[0]["forwards"] == json.loads(err)["forwards"]


def test_prompts_are_shared_out_and_a_stopped_run_goes_on(saved, prompts, capsys):
    """Would catch a prompt that is answered by both or by none, lines that are mixed, and a file that is begun by each."""
    one, two = prompts.with_name("one.jsonl"), prompts.with_name("two.jsonl")
    run(capsys, "--model", saved, "--prompts", prompts, "--out", one, "--batch-size", 1, *SHORT)
    two.write_bytes(b"".join(one.read_bytes().splitlines(keepends=True)[:1]) + b'{"id": 5, "pro')
    done = torchrun("dllm.py", "--model", saved, "--prompts", prompts, "--out", two, "--batch-size", 1, "--json", *SHORT)
    assert done.returncode == 0, done.stderr
    assert sorted(one.read_bytes().splitlines()) == sorted(two.read_bytes().splitlines())
    counters = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [each["questions"] for each in counters] == [4]


def test_problems_are_shared_out(capsys):
    """Would catch a score that counts one process's problems, or each problem twice."""
    arguments = ["compare", "--strategies", "fast-dllm,streaming", "--task", "add,compare", "--limit", "5", "--gen-length", "32", "--json"]
    done = torchrun("-m", "lab.bench", *arguments)
    assert done.returncode == 0, done.stderr
    from lab import bench

    bench.main(arguments)
    timed = ("tokens_per_second", "speed_up")
    plain, shared = (
        {
            task: {label: {k: v for k, v in f.items() if k not in timed} for label, f in of.items()}
            for task, of in json.loads(text)["figures"].items()
        }
        for text in (capsys.readouterr().out, done.stdout)
    )
    assert shared == plain


@pytest.mark.parametrize(
    ("processes", "arguments", "message"),
    [
        (
            3,
            ["dllm.py", "--model", "{saved}", "--prompt", "a", *SHORT],
            "--nproc-per-node is 3, expected a number that divides the model's 4 (n_heads)",
        ),
        (2, ["dllm.py", "--model", "{saved}", "--prompt", "a", "--int8", *SHORT], "--int8 works in one process only"),
        (2, ["-m", "lab.bench", "oracle"], "oracle works in one process only"),
    ],
)
def test_what_cannot_be_shared_is_refused_once(saved, processes, arguments, message):
    """Would catch a line from each process, and a process that waits for the others for ever."""
    done = torchrun(*[a.replace("{saved}", str(saved)) for a in arguments], processes=processes)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("dllm.py:", "lab.bench:"))]
    assert done.returncode != 0 and len(lines) == 1 and message in lines[0], done.stderr


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
