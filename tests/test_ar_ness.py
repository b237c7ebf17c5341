"""How far a decode went from left to right (lab/compare.py)."""

import pytest
import torch
from hypothesis import given

from dllm import Result
from lab.compare import ar_ness
from shared import run, seeds


@given(seeds)
def test_left_to_right_decoding_is_entirely_autoregressive(seed):
    """Would catch an order that is read backwards, and EOS padding that counts as text."""
    result = run(seed, "ar", block_length=1)
    assert result.lengths[0] == 0 or ar_ness(result) == (1.0, 1.0)


def test_ar_ness_by_hand():
    """Would catch an order by position instead of by forward. Written: cell 2, then 0 and 1, then 3; EOS behind them does not count."""
    result = Result(torch.zeros(1, 6), torch.tensor([[0, 2, 2, 1, 3, 1]]), [4], 3, [3], 0, 1.0, 1)
    assert ar_ness(result) == pytest.approx((1 / 3, 3 / 4))  # 2 0 1 3: one of three steps to the right, cell 2 was not the leftmost
    assert ar_ness(result, n=3) == (0.0, 1.0)
