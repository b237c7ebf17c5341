"""Spiffy: the graph of a file makes the drafts that test_drafts.py tests. How one is found is in test_calibrate.py."""

import json

import pytest

from conftest import random_model
from shared import refused, run
from strategies import Strategy, build
from strategies.drafts import Drafts
from strategies.fast_dllm import cached
from strategies.llada import quota, serial


def test_the_graph_of_a_file_is_used(tmp_path):
    """Would catch a file that is read and not used, and a second choice that is taken for the first."""
    file, graph = tmp_path / "graph.json", (((1, 1),), ((0, 1), (1, 0)), ((0, 0),))
    file.write_text(json.dumps(graph))
    assert build("spiffy", graph=str(file)).forward.graph == graph
    for seed in range(4):
        named, mine = run(seed, "spiffy", graph=str(file)), run(seed, Strategy(quota, cached("dual"), serial, forward=Drafts(graph)))
        assert named.nfe == mine.nfe and named.tokens.equal(mine.tokens)
    assert sum(run(seed, "spiffy", graph=str(file)).nfe != run(seed, "spiffy").nfe for seed in range(8)) >= 4  # the control


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "[[[0]]]", "[[[0, 1, 2]]]", "[[[0, -1]]]", "[[[0, 1000]]]", "[[[0, true]]]", '[[["a", "b"]]]']
)
def test_what_is_no_graph_is_refused(tmp_path, text):
    """Would catch a traceback, or a draft of nothing."""
    file = tmp_path / "graph.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="graph .* cannot be read|holds something else than pairs of whole numbers from 0"):
        build("spiffy", graph=str(file))
    refused(random_model(0), "spiffy", "cannot be read", graph=str(tmp_path / "none.json"))
