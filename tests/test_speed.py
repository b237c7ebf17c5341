"""The yardstick is as long as what it measures, the law is found where it holds, and everything that is asked for is printed."""

import json
import shutil

import pytest
import torch
from conftest import random_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dllm
import load_weights
from lab import attention, bench, speed

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


@pytest.mark.parametrize("cache", speed.CACHES)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_floor_has_the_products_of_the_forward(cache, batch):
    """Would catch a yardstick that is longer or shorter than what it measures, and a forward that computes what nobody asked for."""
    model = random_model(0, n_layers=3)
    with torch.inference_mode():
        canvas, step = speed.at_work(model, cache, batch, 6, 32, 4)
        size = speed.size_of(canvas, step)
        ours = flops(lambda: dllm.forward(canvas, step.window, step.at))
    assert ours == flops(speed.bare_products(model, size)) == speed.operations(model, size) > 0
    assert ours > flops(speed.bare_products(model, size._replace(Q=size.Q - 1)))


@pytest.mark.parametrize("batch", [1, 2])
def test_the_forward_is_one_in_the_middle_of_an_answer(batch):
    """Would catch a forward that fills the cache, one at an end where nothing is before or behind, and rows that have left the batch."""
    sizes = {"none": (38, 38, None), "prefix": (16, 38, None), "dual": (4, 38, None), "vicinity": (32, 38, None), "frozen": (16, 38, None)}
    sizes |= {"exact": (20, 38, None), "delayed": (15, 38, None), "evicting": (4, 21, None), "partly": (32, 38, 8)}
    for cache in speed.CACHES:
        gen_length = 64 if cache == "pruned" else 32  # or nothing would be far enough away
        canvas, step = speed.at_work(random_model(0), cache, batch, 6, gen_length, 4)
        size = speed.size_of(canvas, step)
        assert step.window.start == 6 + gen_length // 2 and step.window.age >= 2 and len(canvas.live) == size.B == batch, cache
        assert (size.Q, size.K, size.renewed) == sizes.get(cache, (21, 59, None)), cache
        assert size.written == (cache != "none") == (canvas.cache is not None), cache
        assert size.R == (3 if cache == "delayed" else step.window.end - step.window.start), cache


@torch.inference_mode()
def test_two_blocks_are_enough():
    """Would catch a canvas that is empty because its last block is full: its forward would cost nothing."""
    for cache in speed.CACHES:
        canvas, step = speed.at_work(random_model(0), cache, 2, 3, 6, 3)
        _, rows, _ = dllm.forward(canvas, step.window, step.at)
        assert rows == step.rows > 0


def test_the_bytes_are_those_of_the_weights_and_the_slots():
    """Would catch an embedding that is counted as if all of it were read, slots that are not, and bytes of another dtype."""
    model = random_model(0).bfloat16()
    matrices = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and name != "wte.weight")
    assert speed.traffic(model, speed.Size(3, 4, 20, 4, False)) == 2 * matrices
    assert speed.traffic(model, speed.Size(3, 4, 20, 4, True)) == 2 * (matrices + 2 * 3 * (4 + 20) * 2 * 4 * 8)


def test_on_a_gpu_the_floor_is_the_longer_of_bytes_and_products(monkeypatch):
    """Would catch rates that are turned over, and a sum instead of a maximum. No GPU is needed: only the device's name is asked for."""
    model, size = random_model(0), speed.Size(1, 4, 20, 4, True)
    monkeypatch.setattr(speed, "rates", lambda device: ("copy", "product", 1000, 10**6))
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    calls, floor = speed.yardstick(model, size)
    assert calls == ["copy", "product"]
    assert floor(1.0, 0.0) == speed.traffic(model, size) / 1000 and floor(0.0, 1.0) == speed.operations(model, size) / 10**6
    assert floor(1.0, 1.0) == max(floor(1.0, 0.0), floor(0.0, 1.0))


def test_float64_probabilities_are_the_confidence():
    """Would catch a comparison with something that is not the same figure."""
    logits = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0))
    confidence = dllm.kernels.score(logits).confidence
    torch.testing.assert_close(speed.through_probabilities(logits)[..., 0].float(), confidence)


SIZES = [speed.Size(1, Q, K, 8, True) for Q in (8, 32, 100, 400) for K in (100, 400, 1600)]


def test_the_fit_finds_the_constants_of_its_own_law():
    """Would catch terms in another order than the constants, a scale that is not undone, and weights that favour the longest."""
    constants = [3e-3, 2e-6, 5e-9]
    x = [speed.terms(size, 6) for size in SIZES]
    law = speed.fit(x, [sum(a * b for a, b in zip(constants, line)) for line in x])
    assert law.constants == pytest.approx(constants, rel=1e-6) and law.r2 == pytest.approx(1) and max(map(abs, law.errors)) < 1e-6


def test_the_fit_shows_where_another_law_holds():
    """Negative control: a cost that grows with the square of the rows, and not with the slots, must not look like the law."""
    law = speed.fit([speed.terms(size, 6) for size in SIZES], [1e-3 + 1e-7 * size.Q**2 for size in SIZES])
    assert max(map(abs, law.errors)) > 0.3


def test_speed_prints_a_line_for_each_cache_and_names_operators(capsys):
    """Would catch a table without its figures, a ratio of something else, and a profile that counts another number of calls."""
    bench.main(["speed", *SMALL, "--profile"])
    out = capsys.readouterr().out
    header, *rows = table(out)
    assert [row[1] for row in rows] == list(speed.CACHES) and all(len(row) == len(header) == 11 for row in rows)
    forward, floor, ratio = (float(rows[0][header.index(name)]) for name in ("forward", "floor", "ratio"))
    assert ratio == pytest.approx(forward / floor, rel=0.02)
    assert out.startswith("torch ") and "Prompt 8, gen_length 16, blocks of 4." in out
    operators = {row[0]: row[1] for row in table(out, 1)}  # of the first cell, which has no cache
    assert operators["aten::mm"] in ("42", "43") and "all" in operators  # six layers of seven matrices; the head may be an aten::bmm


def test_speed_as_json_has_the_same_figures(capsys, monkeypatch):
    """Would catch figures that cannot be read, and a compiled forward that is not asked for: --compile goes to both settings and table."""
    seen = []
    monkeypatch.setattr(speed, "prepare", lambda *args: seen.append(args[3]["compile"]) or dllm.prepare(*args[:3], args[3] | {"compile": False}, *args[4:]))  # fmt: skip
    bench.main(["speed", *SMALL, "--caches", "dual", "--json", "--compile"])
    found = json.loads(capsys.readouterr().out)
    [cell] = found["cells"]
    assert (
        seen == [False, True]
        and set(cell["compiled"]) == {"compiled", "its ratio", "speed-up", "scores"}
        and set(cell["counts"]) == {"MB", "compiled MB", "calls", "compiled calls"}
        and cell["counts"]["MB"] > 0
        and cell["counts"]["calls"] > 6 * 7 + 1
    )
    assert (cell["rows"], cell["slots"], cell["batch"], cell["cache"]) == (4, 24, 1, "dual") and found["settings"]["rounds"] == 1


def test_grow_prints_the_law_and_the_memory(capsys):
    """Would catch a length that is left out, and a cache that takes other memory than its formula says."""
    bench.main(["grow", "--caches", "none,dual,exact", "--gen-lengths", "16,32", "--prompt-lengths", "8,24", "--block-length", "4", "--rounds", "1"])  # fmt: skip
    out = capsys.readouterr().out
    header, *rows = table(out)
    assert header == ["prompt", "answer", "none", "dual", "exact", "cache MB", "held"]
    assert [row[:2] for row in rows] == [["8", "16"], ["8", "32"], ["24", "16"]]
    assert all(row[-1] == row[-2] == f"{(int(row[0]) + int(row[1])) * 6 * 2 * 192 * 4 / 1e6:.2f}" for row in rows)
    assert [row[0] for row in table(out, 1)[1:]] == list(speed.TERMS) and "largest relative error none " in out


def kernel_inputs(seen: str):
    """q, k and v of four heads over two of keys, as a decoder has them, and a mask."""
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 4, 8, generator=rng).transpose(1, 2)
    k, v = torch.randn(2, 2, 2, 16, 8, generator=rng)
    return q, k, v, attention.SEEN[seen](6, 16, q.device)


@pytest.mark.parametrize("seen", attention.SEEN)
def test_every_attention_kernel_computes_the_same(seen):
    """Would catch a mask that means its opposite to one of them, and a kernel that is compared on other heads."""
    inputs = kernel_inputs(seen)
    expected = attention.explicit(*(t.double() for t in inputs[:3]), inputs[3])()
    for name in ("SDPA", "math", "explicit"):
        assert attention.exact(attention.KERNELS[name](*inputs), expected), name
    assert not attention.exact(attention.explicit(*inputs[:3], torch.eye(6, 16, dtype=torch.bool)), expected)  # the negative control
    assert not attention.exact(lambda: torch.zeros(1)[2], expected)  # one that raises


needs_a_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)


@needs_a_compiler
def test_flex_attention_computes_the_same():
    """Would catch a mask that FlexAttention reads the other way round, and a kernel whose figures are those of a failure."""
    q, k, v = torch.randn(3, 1, 2, 32, 16)
    mask = attention.SEEN["block-causal"](32, 32, q.device)
    assert attention.exact(attention.flex(q, k, v, mask), attention.explicit(q.double(), k.double(), v.double(), mask)())


@needs_a_compiler
def test_flex_attention_is_compiled_for_every_size(capsys, monkeypatch):
    """Would catch a kernel that drops out of the comparison once PyTorch has compiled as many sizes of it as it keeps by default."""
    monkeypatch.setattr(attention, "KERNELS", {"flex": attention.flex})
    monkeypatch.setattr(attention, "SEEN", {"all": attention.SEEN["all"]})
    with torch.compiler.config.patch(recompile_limit=1):
        bench.main(
            ["attention", "--shape", "tiny", "--batch", "1", "--rows", "8", "--slots", "40,72,104", "--rounds", "1", "--device", "cpu"]
        )
    assert all(float(row[4]) > 0 for row in table(capsys.readouterr().out)[1:])


def test_what_is_hidden():
    """Would catch a mask that hides nothing, which a kernel may skip: the figures would be those of no mask."""
    masks = {name: seen(6, 16, "cpu") for name, seen in attention.SEEN.items()}
    assert masks["all"] is None and masks["three quarters"].sum() == 6 * 12 and not masks["three quarters"][:, 12:].any()
    assert masks["block-causal"].sum(-1).tolist() == [13, 13, 13, 16, 16, 16]


def test_attention_prints_a_line_for_each_mask_and_size(capsys, monkeypatch):
    """Would catch a size that is left out, a figure under another kernel's name, and kernels nobody can run that get a column."""
    names = ("SDPA", "cuDNN", "math")  # FlexAttention would be compiled for each line
    monkeypatch.setattr(attention, "KERNELS", {name: attention.KERNELS[name] for name in names})
    bench.main(["attention", "--shape", "tiny", "--batch", "1,2", "--rows", "4", "--slots", "8,16", "--rounds", "1", "--device", "cpu"])
    header, *rows = table(capsys.readouterr().out)
    assert header == ["seen", "batch", "rows", "slots", "SDPA", "math"]
    assert [row[:4] for row in rows] == [[seen, B, "4", K] for seen in attention.SEEN for B in "12" for K in ("8", "16")]
    assert all(float(row[4]) > 0 and float(row[5]) > 0 for row in rows)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["speed", "--shapes", "tiny,warp"], "unknown shape 'warp': choose of tiny, mid, 8b"),
        (["speed", "--caches", "triple"], "unknown cache 'triple': choose of none, prefix"),
        (["speed", "--batch", "1,0"], "batch is '1,0', expected whole numbers of at least 1"),
        (["speed", "--rounds", "0"], "rounds is 0, expected at least 1"),
        (["speed", "--threads", "0"], "threads is 0, expected at least 1"),
        (["speed", "--device", "warp"], "unknown device 'warp'"),
        (["speed", "--gen-length", "33"], "gen_length 33 is not a multiple of block_length 32"),
        (["speed", "--gen-length", "32"], "gen_length is 32 and block_length 32, expected two blocks of at least 3 tokens"),
        (["attention", "--rows", "32,256"], "rows is 256, expected at most as many as slots, 192"),
        (["attention", "--shape", "huge"], "shape is 'huge', expected one of tiny, mid, 8b"),
        (["attention", "--slots", "99999999"], "the scores of attention, written out in float64, need"),
        (["grow", "--shape", "tiny,mid"], "shape is 'tiny,mid', expected one of tiny, mid, 8b"),
        (["grow", "--gen-lengths", "many"], "gen_lengths is 'many', expected whole numbers"),
        (["grow", "--caches", "dual", "--gen-lengths", "128", "--prompt-lengths", "64"], "1 forwards do not determine 3 constants"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    """Would catch a traceback after minutes of measuring."""
    with pytest.raises(SystemExit) as exit:
        bench.main(arguments)
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize("command", [["speed", "--shapes", "tiny,8b"], ["grow", "--shape", "8b"]])
def test_a_shape_that_does_not_fit_is_refused_before_any_work(capsys, monkeypatch, command):
    """Would catch a machine brought down by 16 GB of random weights, or by them only after the other shapes were measured."""
    monkeypatch.setattr(load_weights, "free_memory", lambda device: 10e9)
    monkeypatch.setattr(speed, "random_model", None)
    with pytest.raises(SystemExit) as exit:
        bench.main([*command, "--dtype", "bfloat16"])
    assert exit.value.code == 2 and "shape 8b in bfloat16 need 1" in capsys.readouterr().err
