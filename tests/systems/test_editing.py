"""Token editing: what may be replaced, and until when."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given

from conftest import MASK, random_model, random_prompt
from dllm import decode
from kernels import LARGEST, Scores
from model import Pass
from shared import LENGTHS, answers, changed, run, same, seeds, views
from strategies import Strategy, build
from strategies.d2f import pipeline
from strategies.editing import edit_rule
from strategies.llada import full, serial


def test_it_replaces_only_what_the_model_has_left():
    """Would catch an edit of a full block or of a finished row, and edits below the threshold. Candidates are cells 0 and 1."""
    scores = Scores(torch.full((2, 4), 7), 1 / torch.tensor([[0.9, 0.5, 0.95, 0.6]] * 2) - 1)
    candidates = torch.tensor([[True, True, False, False], [False] * 4])
    rule = build("editing", threshold=0.8, edit_threshold=0.9).rule
    write, token = rule(scores, candidates, SimpleNamespace(must=candidates.any(-1, keepdim=True)))
    assert write.tolist() == [[True, False, True, False], [False] * 4] and (token == 7).all()
    write, _ = rule(scores, candidates, SimpleNamespace(must=candidates.any(-1)[None]))  # both blocks of one row
    assert write.tolist() == [[True, False, True, False], [False, False, True, False]]


@given(seeds)
def test_an_overlap_edits_the_block_before_once_more(seed):
    """Would catch a block before that is edited in another forward than the next one's first, or not at all."""
    edits = {True: 0, False: 0}
    for step in decode(random_model(seed), random_prompt(seed, 5), "editing", threshold=0.5, edit_threshold=0.0, overlap=True, **LENGTHS):
        first, both = step.window.age == 0, step.window.end - step.window.start == 16
        assert both == (first and step.nfe > 1)
        edits[both] += int(step.commit[0, :8].sum()) if both else 0
        assert not (both and step.candidates[0, :8].any())
    assert not edits[False]


def test_an_overlap_changes_answers():
    """Negative control for the test above."""
    own = {"threshold": 0.5, "edit_threshold": 0.0}
    assert changed("editing", own, "editing", own | {"overlap": True}) >= 2


@given(seeds)
def test_dllm_var_edits_as_its_authors_do(seed):
    """Would catch an edit of other cells, keys and values of another forward, and a block that is edited after its last chance: the
    authors' loop, written out (a block and the one before are computed together once, and the former is kept as that forward saw it)."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    ids, cache, mine = torch.tensor([prompt]), model.new_cache(1, 29), run(seed, "dllm-var", prompt, **EDITS, eos="fill")
    for block in range(3):
        start, ids = ids.shape[1], torch.cat((ids, torch.full((1, 8), MASK)), 1)
        query = slice(max(0, start - 8) if block else 0, start + 8)
        while (ids == MASK).any():
            logits = model(ids[:, query], Pass(query, slice(0, start + 8)), cache)
            logits[..., MASK] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            masked = ids[:, query] == MASK
            write = masked & (confidence >= 0.5)
            if not write.any():
                write = confidence == confidence.masked_fill(~masked, -1).max()
            editable = torch.arange(query.start, query.stop) >= (start - 8 if block else start)
            ids[:, query] = torch.where(write | ~masked & editable, token, ids[:, query])
            query = slice(start, start + 8)
    assert mine.tokens.equal(ids)


EDITS = {"threshold": 0.5, "edit_threshold": 0.0}


def test_dllm_var_does_edit():
    """Negative control for the test above."""
    assert changed("dllm-var", {"threshold": 0.5, "eos": "fill"}, "dllm-var", EDITS | {"eos": "fill"}) >= 2


@given(seeds)
def test_with_an_unreachable_threshold_it_is_the_plain_rule(seed):
    """Would catch an edit that no threshold stops."""
    assert same(run(seed, "editing", threshold=0.6, edit_threshold=2.0), run(seed, "fast-dllm", threshold=0.6))


def test_it_does_edit():
    """Negative control for the test above."""
    plain = {"cache": "none", "threshold": 0.5}
    assert changed("fast-dllm", plain, "editing", plain | {"edit_threshold": 0.5}) >= 1


def test_what_cannot_be_combined_is_refused():
    """Would catch a combination that runs and is wrong."""
    rule = build("editing", threshold=0.6, edit_threshold=0.4).rule
    with pytest.raises(ValueError, match="needs one block at a time"):
        Strategy(rule, full, pipeline(0.1, 0.95))
    for name, view in views("dkv", "dllm-cache", "sparse").items():
        if name in ("dkv", "dllm-cache"):
            with pytest.raises(ValueError, match="contradicts a cache"):
                Strategy(rule, view, serial)
        else:  # which changes nothing outside the block
            assert MASK not in answers(run(3, Strategy(rule, view, serial)))[0]


def test_an_end_that_is_held_back_is_no_edit():
    """Would catch an edit_threshold of 0, which takes any other choice, even the EOS that eos="defer" makes the least likely of all."""
    doubt = torch.tensor([[LARGEST, LARGEST / 2]])
    rule, none = edit_rule(0.5, 0.0), torch.tensor([[False, False]])
    write, _ = rule(Scores(torch.zeros(1, 2), doubt), none, SimpleNamespace(must=torch.tensor([[True]])))
    assert write.tolist() == [[False, True]]
