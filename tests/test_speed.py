"""The yardstick is as long as what it measures, and everything that is asked for is printed."""

from argparse import Namespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dllm
import load_weights
from conftest import random_model
from lab import bench, speed

SMALL = ["--shapes", "tiny", "--batch", "1", "--rounds", "1", "--prompt-length", "8", "--gen-length", "16", "--block-length", "4"]


def table(text: str, number: int = 0) -> list[list[str]]:
    """The cells of the number-th table of a text, its header first."""
    block = [block for block in text.split("\n\n") if block.startswith("|")][number]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
    return rows[:1] + rows[2:]


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):  # the CPU's own is not counted
        call()
    return counter.get_total_flops()


@torch.inference_mode()
def forward_at_work(model, cache, batch, prompt, gen_length, block):
    """A canvas, its step, and what was noted of that step's forward."""
    args = Namespace(prompt_length=prompt, gen_length=gen_length, block_length=block)
    canvas, step = speed.at_work(model, cache, batch, args)
    with speed.Products() as products:
        canvas.forward(step.window, step.at)
    return canvas, step, products


def read_and_computed(products) -> list[float]:
    """Bytes and operations of these products."""
    calls, shares = speed.yardstick(products, torch.device("cuda"))
    assert calls == ["copy", "product"]
    return (shares[:, 0] * 2**20).tolist()


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """No GPU is needed: only the device's name is asked for."""
    monkeypatch.setattr(speed, "rates", lambda device: ("copy", "product", 2**20, 2**20))


@pytest.mark.parametrize("cache", speed.CACHES)
@pytest.mark.parametrize("kv_heads, batch", [(4, 1), (2, 3)])
def test_the_floor_has_the_products_of_the_forward(cache, kv_heads, batch):
    """Would catch a yardstick that is longer or shorter than what it measures, and heads that share keys counted once."""
    model = random_model(0, n_layers=3, n_kv_heads=kv_heads)
    canvas, step, products = forward_at_work(model, cache, batch, 6, 32, 4)
    ours = flops(lambda: canvas.forward(step.window, step.at))
    assert ours == flops(products.run) == read_and_computed(products)[1] > 0
    assert ours > flops(forward_at_work(model, cache, batch, 5, 32, 4)[2].run)  # the negative control: one slot less


@pytest.mark.parametrize("batch", [1, 2])
def test_the_forward_is_one_in_the_middle_of_an_answer(batch):
    """Would catch a forward that fills the cache, one at an end where nothing is before or behind, and rows that have left the batch."""
    sizes = {"none": (38, 38), "prefix": (16, 38), "dual": (4, 38), "vicinity": (32, 38), "frozen": (16, 38), "pruned": (21, 59)}
    sizes |= {
        "exact": (20, 38),
        "delayed": (15, 38),
        "evicting": (4, 21),
        "partly": (20, 38),
    }  # the first of two layers computes 32, the other 8
    for cache in speed.CACHES:
        gen_length = 64 if cache == "pruned" else 32  # or nothing would be far enough away
        canvas, step, products = forward_at_work(random_model(0), cache, batch, 6, gen_length, 4)
        assert step.window.start == 6 + gen_length // 2 and step.window.age not in (0, 1) and len(canvas.live) == batch, cache
        assert (step.rows, products.slots) == (batch * sizes[cache][0], sizes[cache][1]), cache
        assert (canvas.cache is None) == (cache == "none")


@torch.inference_mode()
def test_two_blocks_are_enough():
    """Would catch a canvas that is empty because its last block is full: its forward would cost nothing."""
    for cache in speed.CACHES:
        _, step, products = forward_at_work(random_model(0), cache, 2, 3, 6, 3)
        assert step.rows > 0 and read_and_computed(products)[1] > 0


def test_the_bytes_are_those_of_the_weights_and_the_slots():
    """Would catch an embedding that is counted as if all of it were read, slots that are not, and bytes of another dtype."""
    model = random_model(0, n_kv_heads=2).bfloat16()
    matrices = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and name != "wte.weight")
    _, _, products = forward_at_work(model, "dual", 3, 6, 32, 4)
    assert read_and_computed(products)[0] == 2 * (matrices + 2 * 3 * 38 * 2 * 2 * 8)


def test_the_floor_is_the_longer_of_its_parts(monkeypatch):
    """Would catch a floor that adds up what a GPU does at the same time, and figures of another call."""
    monkeypatch.setattr(speed, "yardstick", lambda products, device: (["copy", "product"], torch.tensor([[0.5], [2.0]])))
    monkeypatch.setattr(speed, "alternate", lambda calls, rounds, device: torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 4.0], [4.0, 4.0, 4.0], [1.0, 2.0, 3.0]]))  # fmt: skip
    args = Namespace(prompt_length=6, gen_length=32, block_length=4, rounds=3, compile=False, theirs=False)
    with torch.inference_mode():
        found = speed.measure(random_model(0), "dual", 2, args)
    assert found == {"rows": 8, "slots": 38, "forward": 8, "floor": 4, "ratio": 2, "scores": 2, "share": 0.25}


def test_speed_prints_a_line_for_each_cache(capsys):
    """Would catch a table without its figures, and a ratio of something else."""
    bench.main(["speed", *SMALL])
    out = capsys.readouterr().out
    header, *rows = table(out)
    assert [row[1] for row in rows] == list(speed.CACHES) and all(len(row) == len(header) == 10 for row in rows)
    forward, floor, ratio = (float(rows[0][header.index(name)]) for name in ("forward", "floor", "ratio"))
    assert ratio == pytest.approx(forward / floor, rel=0.02)
    assert out.startswith("torch ") and "Prompt 8, gen_length 16, blocks of 4." in out


def test_what_is_compiled_stands_beside_it(capsys, monkeypatch):
    """Would catch a compiled forward that is not asked for: --compile goes to both settings and table."""
    seen = []
    monkeypatch.setattr(speed, "prepare", lambda *args: seen.append(args[3]["compile"]) or dllm.prepare(*args[:3], args[3] | {"compile": False}, *args[4:]))  # fmt: skip
    bench.main(["speed", *SMALL, "--caches", "dual", "--compile"])
    header, row = table(capsys.readouterr().out)
    assert seen == [False, True] and header[-4:] == ["compiled", "its ratio", "speed-up", "its scores"]
    forward, compiled, faster = (float(row[header.index(name)]) for name in ("forward", "compiled", "speed-up"))
    assert row[:5] == ["tiny", "dual", "1", "4", "24"] and faster == pytest.approx(forward / compiled, rel=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shapes", "tiny,warp"], "shape is 'warp', expected one of tiny, 60m, mid, 8b"),
        (["--caches", "triple"], "cache is 'triple', expected one of none, prefix"),
        (["--batch", "1,0"], "argument --batch: '0' is not a whole number of at least 1"),
        (["--rounds", "0"], "argument --rounds: '0' is not a whole number"),
        (["--device", "warp"], "unknown device 'warp'"),
        (["--gen-length", "33"], "gen_length 33 is not a multiple of block_length 32"),
        (["--gen-length", "32"], "gen_length is 32, expected two blocks of three or more tokens"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    """Would catch a traceback after minutes of measuring."""
    with pytest.raises(SystemExit) as exit:
        bench.main(["speed", *arguments])
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_a_shape_that_does_not_fit_is_refused_before_any_work(capsys, monkeypatch):
    """Would catch a machine brought down by 16 GB of random weights, or by them only after the other shapes were measured."""
    monkeypatch.setattr(load_weights, "free_memory", lambda device: 10e9)
    monkeypatch.setattr(speed, "random_model", None)
    with pytest.raises(SystemExit) as exit:
        bench.main(["speed", "--shapes", "tiny,8b", "--dtype", "bfloat16"])
    assert exit.value.code == 2 and "the weights and cache of shape 8b need 1" in capsys.readouterr().err


@torch.inference_mode()
@pytest.mark.parametrize("cache", speed.THEIRS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_authors_way_finds_the_same(cache, batch):
    """Would catch a comparison of two steps that do not compute the same, and one whose other half is less than the authors do."""
    canvas, step, _ = forward_at_work(random_model(0), cache, batch, 6, 32, 4)
    masked = canvas.candidates(step.window)
    ours, theirs = speed.steps(canvas, step, cache)
    scores, (token, share) = ours(), theirs()
    assert masked.any() and not masked.all()
    assert scores.token[masked].equal(token[masked])
    torch.testing.assert_close(scores.confidence[masked], share[masked].float(), rtol=1e-4, atol=1e-6)
    assert flops(theirs) > flops(ours)  # of rows of the last layer and of the head


def test_a_step_as_the_authors_code_has_it_stands_beside_ours(capsys):
    """Would catch a ratio the wrong way round, and a cache of which no authors' way is written down."""
    bench.main(["speed", *SMALL, "--theirs", "--caches", "none,exact"])
    header, *rows = table(capsys.readouterr().out)
    assert header[-4:] == ["step", "theirs", "faster", "of a softmax"] and len(rows) == 2
    for row in rows:
        ours, theirs, faster = (float(row[header.index(name)]) for name in ("step", "theirs", "faster"))
        assert faster == pytest.approx(theirs / ours, rel=0.02)
    with pytest.raises(SystemExit):
        bench.main(["speed", *SMALL, "--theirs", "--caches", "vicinity"])
    assert "cache is 'vicinity', expected one of none, prefix, dual, exact" in capsys.readouterr().err
