"""Drafts are counted as they come true, and what is counted can be read again."""

import json
from collections import Counter

import pytest
import torch

import dllm
from conftest import MASK, random_model, random_prompt
from lab import calibrate
from shared import LENGTHS, run
from strategies import Strategy, build
from strategies.drafts import Drafts
from strategies.fast_dllm import cached
from strategies.llada import quota, serial
from strategies.spiffy import read_graph


def test_a_draft_says_which_masks_by_rank_and_with_which_choice():
    """Would catch ranks among all cells instead of the masked ones, and choices counted from the wrong end."""
    logits = torch.tensor([[9.0, 0, 0], [3, 2, 0], [0, 5, 1], [1, 0, 0]])  # of the masked, cell 2 is the surest, then 1, then 3
    before, after = torch.tensor([0, MASK, MASK, MASK]), torch.tensor([0, 1, 1, MASK])
    assert calibrate.observed(before, logits, after, MASK) == {(0, 0), (1, 1)}


def test_the_most_frequent_drafts_that_can_be_reached_are_chosen():
    """Would catch a frequent draft whose way there was not chosen: the walk could never come to it."""
    one, other, both, far = frozenset({(0, 0)}), frozenset({(1, 0)}), frozenset({(0, 0), (1, 0)}), frozenset({(5, 5)})
    seen = Counter({(one, frozenset()): 5, (other, frozenset()): 1, (both, one): 4, (both, other): 1, (far, frozenset({(9, 9)})): 99})
    assert calibrate.choose(seen, 2) == [[(0, 0)], [(0, 0), (1, 0)]]
    assert calibrate.choose(seen, 9) == [[(0, 0)], [(0, 0), (1, 0)], [(1, 0)]]


def test_what_was_counted_saves_forwards():
    """Would catch a graph of other ranks than those the decoder draws: it would be lossless, and of no use."""
    model, prompt = random_model(5), random_prompt(5, 6)
    steps = dllm.decode(model, prompt, "fast-dllm", cache="dual", threshold=None, **LENGTHS)
    graph = tuple(map(tuple, calibrate.choose(calibrate.count(steps, MASK), 30)))
    rule = Strategy(quota, cached("dual"), serial, forward=Drafts(graph))
    plain, counted = run(5, "fast-dllm", prompt, cache="dual", threshold=None), run(5, rule, prompt)
    assert counted.tokens.equal(plain.tokens) and counted.nfe <= plain.nfe - 6


def test_a_calibration_is_a_file_that_spiffy_reads(tmp_path, capsys):
    """Would catch a format that only one of the two knows, and mistakes that end in a traceback."""
    file = tmp_path / "graph.json"
    calibrate.main([str(file), "--limit", "1", "--nodes", "3"])
    capsys.readouterr()
    graph = read_graph(str(file))
    assert 1 <= len(graph) <= 3 and build("spiffy", graph=str(file)).forward.graph == graph
    for text in ("{", "[[[0]]]", "[[[0, -1]]]", "[[[0, 0.5]]]", '["ab"]'):
        file.write_text(text)
        with pytest.raises(ValueError, match="graph .* (cannot be read|holds something else)"):
            build("spiffy", graph=str(file))
    for arguments in (["x/y/z.json"], [str(file), "--nodes", "0"], [str(file), "--model", "./nowhere"]):
        with pytest.raises(SystemExit) as exit:
            calibrate.main(arguments)
        assert exit.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert json.loads(file.read_text()) == ["ab"]


def test_the_layers_that_are_missed_least_are_found(capsys, monkeypatch):
    """Would catch a search that keeps the worse, counts what stands there already, or leaves out the first or last layer."""
    model, prompt = random_model(0, n_layers=4), random_prompt(0, 6)
    idle = model.blocks[2]
    idle.attn_out.weight.zero_(), idle.ff_out.weight.zero_()  # the layer adds nothing
    states = calibrate.halfway(dllm.decode(model, prompt, "llada", **LENGTHS))
    assert [(int((x[block] == MASK).sum()), MASK in final) for x, block, final in states] == [(4, False)] * 3
    assert calibrate.reproduced(model, states, (2,)) == calibrate.reproduced(model, states, ()) > calibrate.reproduced(model, states, (1,))
    assert calibrate.search(model, states, 1)[0] == (2,)
    monkeypatch.setattr(calibrate, "reproduced", lambda model, states, skip: 1.0 - skip[0] % 3)  # 0 and 3 would be the best
    assert calibrate.search(model, states, 1)[0] == (1,)
    monkeypatch.undo()
    calibrate.main(["--layers", "1", "--limit", "1"])
    assert capsys.readouterr().out.strip() in "1234"
    for arguments in ([], ["file", "--layers", "1"], ["--layers", "5"], ["--layers", "0"]):
        with pytest.raises(SystemExit) as exit:
            calibrate.main(arguments)
        assert exit.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_draft_of_a_choice_beyond_the_vocabulary_is_harmless():
    """Would catch a traceback for a graph that was counted on a model with more tokens."""
    ahead = Drafts((((0, 0), (1, 999)),))
    rule = Strategy(quota, cached("dual"), serial, forward=ahead)
    assert run(5, rule, [1, 2]).tokens.equal(run(5, "fast-dllm", [1, 2], cache="dual", threshold=None).tokens)
