"""SWIFT: which layers make the drafts that test_drafts.py tests."""

from conftest import random_model
from shared import refused, run
from strategies import Strategy
from strategies.drafts import Drafts, chain
from strategies.fast_dllm import cached
from strategies.llada import quota, serial


def drafting(skip, depth: int) -> Strategy:
    return Strategy(quota, cached("dual"), serial, forward=Drafts(chain(depth), skip))


def test_the_layers_left_out_by_default_are_every_second_one_between_the_first_and_the_last():
    """Would catch another set than the settings say, which is as lossless."""
    for layers, skip in ((2, ()), (4, (1,)), (5, (1, 3))):
        named, mine = run(1, "swift", layers=layers, threshold=None), run(1, drafting(skip, 4), layers=layers)
        assert named.nfe == mine.nfe and named.rows == mine.rows and named.tokens.equal(mine.tokens)
    assert run(1, "swift", layers=5).nfe != run(1, drafting((0, 1, 3), 4), layers=5).nfe
    for skip, layers in (("0,2,3", (0, 2, 3)), ("1", (1,))):
        assert run(1, "swift", layers=4, skip=skip).nfe == run(1, drafting(layers, 4), layers=4).nfe


def test_layers_that_do_not_exist_are_refused():
    """Would catch a number that is silently no layer, and a text that ends in a traceback."""
    refused(random_model(0), "swift", "skip is 7, expected a layer of the model's, 0 to 1", skip="7")
    refused(random_model(0), "swift", "skip is '1;2', expected numbers of layers from 0, such as 1,3", skip="1;2")
