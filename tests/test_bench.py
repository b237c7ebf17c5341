"""The benchmark measures what it says: the same products as the forward, honest means, one line for bad input."""

import json
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dllm import STRATEGIES
from lab import bench
from lab.oracle import LANGUAGES
from model import Config

SMALL = ["--d-model", "64", "--n-layers", "2", "--vocab-size", "50", "--canvas", "32", "--block-length", "8", "--rounds", "1"]


@pytest.mark.parametrize("shape", [bench.Shape("full", 0, 32, slice(16, 24)), bench.Shape("block", 16, 24, slice(0, 8))])
def test_the_bare_products_are_those_of_the_forward(shape):
    """Would catch a yardstick that is longer or shorter than what it measures: both must count the same floating-point operations."""
    model = bench.random_model(Config(64, 2, 2, 160, 50, 0, 1), torch.device("cpu"), torch.float32)
    counts = []
    for call in (bench.whole_forward(model, shape, 32), bench.bare_products(model, shape, 32)):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the CPU's own is not counted
            call()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_forward_prints_a_ratio_for_every_shape(capsys):
    """Would catch a table without its figures."""
    bench.main(["forward", *SMALL])
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert [row[:18].strip() for row in rows] == ["full, all logits", "full", "prefix-cached", "block only"]
    assert [int(row.split()[-5]) for row in rows] == [32, 32, 16, 8]
    assert all(float(row.split()[-1]) > 0 for row in rows)


def test_a_score_is_the_mean_over_problems_with_its_interval():
    """Would catch a wrong interval, means over batches instead of problems, and speed counted over padding."""
    score = bench.Score(right=8, problems=10, tokens=200, forwards=100, rows=5000, seconds=4.0)
    figures = score.figures(bench.Score(problems=10, tokens=200, forwards=640, rows=9000, seconds=20.0))
    assert figures["accuracy"] == 0.8 and figures["forwards"] == 10 and figures["rows"] == 500
    assert figures["low"] == pytest.approx(0.490, abs=5e-4) and figures["high"] == pytest.approx(0.943, abs=5e-4)  # Wilson, 8 of 10
    assert figures["tokens_per_forward"] == 2 and figures["tokens_per_second"] == 50 and figures["speed_up"] == 5


def test_compare_runs_every_strategy_on_the_same_problems(capsys):
    """Would catch a strategy that is left out, and rows that are counted per batch."""
    bench.main(["compare", "--limit", "2", "--task", "add", "--gen-length", "32", "--batch-size", "2", "--json"])
    figures = json.loads(capsys.readouterr().out)["figures"]["add"]
    assert set(figures) == set(STRATEGIES)
    assert figures["llada"]["forwards"] == 32 and figures["llada"]["speed_up"] == 1
    assert figures["llada"]["rows"] > figures["fast-dllm"]["rows"]
    bench.main(["compare", "--limit", "1", "--task", "add", "--gen-length", "32", "--strategies", "llada"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("llada ")


def test_oracle_compares_every_rule_with_theory(capsys):
    """Would catch a language or a rule that is left out, and validity counted on the wrong cells."""
    bench.main(["oracle", "--limit", "40", "--length", "4"])
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[0] for line in lines] == list(LANGUAGES)
    table = {line.split()[0]: [float(x) for x in re.findall(r"([\d.]+)%", line)] for line in lines}
    assert all(len(cells) == 1 + len(bench.RULES) for cells in table.values())
    assert table["alternate"][0] == 12.5 and table["bits"] == [100.0] * 8
    assert all(cells[1 + list(bench.RULES).index("one by one")] == 100.0 for cells in table.values())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: command"),
        (["forward", "--rounds", "0"], "rounds is 0, expected at least 1"),
        (["forward", "--d-model", "100"], "d_model must be a multiple of 64"),
        (["forward", "--device", "warp"], "unknown device 'warp'"),
        (["compare", "--strategies", "warp"], "unknown strategy 'warp'"),
        (["compare", "--gen-length", "33"], "gen_length 33 is not a multiple of block_length 32: the nearest is 32"),
        (["compare", "--task", "chess"], "argument --task: invalid choice: 'chess'"),
        (["oracle", "--length", "9"], "no oracle for 'permutation-9'"),
        (["compare", "--model", "./nowhere"], "no checkpoint at ./nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    """Would catch a traceback after minutes of measuring."""
    with pytest.raises(SystemExit) as exit:
        bench.main(arguments)
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "") and err.count("\n") == 1 and message in err
