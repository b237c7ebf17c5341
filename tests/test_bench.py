"""The benchmark measures what it says: the same products as the forward, honest means, one line for bad input."""

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[0] for row in rows] == ["full, all logits", "full", "prefix-cached", "block only"]
    assert [int(row[1]) for row in rows] == [32, 32, 16, 8]
    assert all(float(row[-1]) > 0 for row in rows)


def test_oracle_compares_every_rule_with_theory(capsys):
    """Would catch a language or a rule that is left out, and validity counted on the wrong cells."""
    bench.main(["oracle", "--limit", "40", "--length", "4"])
    lines = capsys.readouterr().out.splitlines()[4:]
    table = {line.split()[1]: [float(x) for x in re.findall(r"([\d.]+)%", line)] for line in lines}
    assert list(table) == list(LANGUAGES)
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
        (["oracle", "--length", "9"], "no oracle for 'permutation-9'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    """Would catch a traceback after minutes of measuring."""
    with pytest.raises(SystemExit) as exit:
        bench.main(arguments)
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "") and err.count("\n") == 1 and message in err
