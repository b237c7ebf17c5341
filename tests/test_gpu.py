"""The acceptance of a GPU: without one it says so and runs what it can; it stops at the first check that fails."""

import re

import pytest
import torch

from lab import bench, gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no CUDA")


def test_without_cuda_it_says_so_and_passes(capsys, monkeypatch):
    """Would catch a traceback where nothing can be run, silence about what was not, and a strategy that another test's settings leave out."""
    monkeypatch.setattr(gpu, "able", lambda: ["llada", "d2f"])
    bench.main(["gpu"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert "no CUDA here" in first and torch.__version__ in first
    assert [re.match(r"ok +(\w+): ", line)[1] for line in lines] == ["tokens"] * 4 + ["waiting"] * 3
    assert lines[4].endswith("a value that is asked for: waits 1 (at most 1, at least 1)")  # the control: a wait is noticed
    assert all(line.endswith(" 1 (at most 1)") for line in lines[5:])  # counted, not left at none


def test_the_first_failure_ends_it(capsys, monkeypatch):
    """Would catch a failure that is told and passed over, and later checks that cost half an hour all the same."""
    later = []
    good = lambda device: iter([gpu.Found("fine", 1, 1)])
    bad = lambda device: iter([gpu.Found("ratio", 1.3, 1.25), gpu.Found("unseen", 0, 1)])
    good.__name__, bad.__name__ = "good", "bad"
    monkeypatch.setattr(gpu, "PRETENDED", (good, bad, later.append))
    with pytest.raises(SystemExit) as ended:
        bench.main(["gpu"])
    assert ended.value.code == 1 and not later
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines == ["ok     good: fine 1 (at most 1)", "FAILED bad: ratio 1.3 (at most 1.25)"]


@pytest.mark.parametrize("value", [float("nan"), 0.7, 1.2])
def test_what_is_no_number_or_too_little_fails(value, monkeypatch):
    """Would catch a NaN that passes since it is not above the limit, and a lower limit that is not looked at."""
    monkeypatch.setattr(gpu, "PRETENDED", (lambda device: iter([gpu.Found("peak", value, 1.1, 0.8)]),))
    with pytest.raises(SystemExit) as ended:
        bench.main(["gpu"])
    assert ended.value.code == 1


def test_other_tokens_are_a_failure(monkeypatch):
    """Negative control: the first check must see a device that writes something else."""
    monkeypatch.setattr(gpu, "able", lambda: ["llada"])
    monkeypatch.setattr(gpu, "counted", lambda name, prompts, device: ([[device is None]] * len(prompts), []))
    found = next(gpu.tokens(None))
    assert (found.value, found.most) == (1, 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "warp"], "unknown device 'warp'"),
        (["--device", "cuda:7"], "there is no device cuda:7 here"),
        (["--device", "cpu"], "device is 'cpu', expected cuda"),
        (["--warp"], "--warp"),
    ],
)
def test_bad_options_are_refused(arguments, message, capsys):
    """Would catch a check of the wrong device, and a traceback instead of one line."""
    with pytest.raises(SystemExit) as ended:
        bench.main(["gpu", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and message in err and not out
