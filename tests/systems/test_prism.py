"""Prism's search: a search of one is no search, copies differ only where they were masked again, and every trajectory is counted."""

import math

import pytest
import torch
from conftest import EOS, MASK, random_filter, random_model, random_prompt
from hypothesis import given
from hypothesis import strategies as st
from test_dllm import CACHES, LENGTHS, answers, run, same, seeds

import dllm
import related
from dllm import Strategy, decode
from lab import command_line, prism
from load_weights import load_filter

SEARCH = {"n": 6, "k": 2, "survivors": 2, "interval": 1, "search_from": 0.1, "search_to": 0.9, "decay": 1.3}


def watched(seed: int, *prompts, **settings):
    """The canvas of a search, and for each forward: the window, the live rows, and the whole canvas before it (after the search) and after."""
    prompts = list(prompts) or [random_prompt(seed, 5)]
    canvas = dllm.prepare(random_model(seed), prompts, "prism", LENGTHS | SEARCH | {"threshold": 0.6} | settings)
    seen, real = [], canvas.strategy.view

    def view(s, window):
        seen.append([window, s.live.tolist(), s.x.clone(), None, s.doubt.clone()])
        return real(s, window)

    canvas.strategy = dllm.replace(canvas.strategy, view=view)
    for step in dllm.steps(canvas):
        seen[-1][3] = step.x.clone()
    return canvas, seen


@given(
    seeds, st.sampled_from(CACHES), st.sampled_from([None, 0.6]), st.sampled_from([0.0, 0.7]), st.sampled_from(["fill", "stop", "defer"])
)
def test_a_search_of_one_is_the_plain_decoder(seed, cache, threshold, temperature, eos):
    """Would catch a search that draws from the generator of the samples, takes back a token of the only one, or computes it once more."""
    settings = {"cache": cache, "threshold": threshold, "temperature": temperature, "eos": eos}
    one, plain = run(seed, "prism", n=1, k=1, **settings), run(seed, "fast-dllm", **settings)
    assert same(one, plain) and (one.rows, one.forwards, one.lengths) == (plain.rows, plain.forwards, plain.lengths)
    assert one.written.equal(plain.written)


def test_a_search_of_several_is_not():
    """Negative control for the test above, greedy and sampling."""
    for temperature in (0.0, 0.7):
        changed = [
            not run(seed, "prism", **SEARCH, threshold=0.6, temperature=temperature, eos="fill").tokens.equal(
                run(seed, "fast-dllm", threshold=0.6, temperature=temperature).tokens
            )
            for seed in range(8)
        ]
        assert sum(changed) >= 4


@given(seeds, st.sampled_from([0.0, 0.7]), st.sampled_from(["fill", "stop"]))
def test_copies_differ_from_their_parent_only_where_they_were_masked_again(seed, temperature, eos):
    """Would catch a copy that is mixed from two, lost tokens, a prompt that is masked, and tokens taken back in another block or too many."""
    remask = 1 + seed % 2
    canvas, seen = watched(seed, temperature=temperature, eos=eos, remask=remask)
    for (window, _, _, after, _), (_, live, now, _, _) in zip(seen, seen[1:]):
        for row in live:
            if now[row].equal(after[row]):
                continue
            back = (after != now[row]) & (now[row] == MASK)
            parents = [p for p in range(len(after)) if torch.where(back[p], MASK, after[p]).equal(now[row])]
            assert parents, "a child of nobody"
            taken = [back[p].nonzero()[:, 0] for p in parents]
            inside = [t[t < window.end] for t in taken]
            assert any(len(t) <= remask and (t >= window.start).all() for t in inside)
            assert window.start == canvas.prompt_length  # only in the first block
            if eos == "fill":
                assert min(map(len, taken)) <= remask


@given(seeds, st.integers(1, 9), st.data())
def test_the_width_sinks_as_the_paper_says_and_never_below_k(seed, n, data):
    """Would catch a width that grows, sinks too fast, or falls below k while there are trajectories that are not finished."""
    k, interval, decay = data.draw(st.integers(1, n)), data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1.0, 1.3, 1.8]))
    settings = {"n": n, "k": k, "survivors": 1, "interval": interval, "decay": decay, "search_from": 0.13, "search_to": 0.8}
    lengths = data.draw(st.sampled_from([8, 24]))  # with one block, trajectories are finished while others are searched
    canvas, seen = watched(seed, temperature=0.7, eos="fill", gen_length=lengths, **settings)
    assert canvas.x.shape[0] == 1
    first, last, width = 1, 6, n
    for (window, before, _, after, _), (_, live, _, _, _) in zip(seen, seen[1:]):
        assert len(live) <= len(before)
        if window.start != canvas.prompt_length:
            continue
        t, over = window.age + 1, not (after[before][:, window.start : window.end] == MASK).any()
        if t >= last or over:
            width = k
        elif t >= first and (t - first) % interval == 0:
            width = max(k, math.ceil(n * decay ** (first - t)))
        over |= t >= last
        assert len(live) == width or over and lengths == 8 and 0 < len(live) < k  # those that are finished leave when the search is over
        if over:
            break


def test_the_least_sure_tokens_are_taken_back():
    """Would catch a pool of the surest, of cells that hold nothing or of another size, and an end that is left behind a block without EOS."""
    canvas = dllm.prepare(random_model(0), [1, 2], "prism", LENGTHS | {"n": 2, "k": 1})
    canvas.x[:, 2:10] = torch.tensor([5, 5, MASK, 5, 5, 5, MASK, 5])
    canvas.doubt[:, 2:10] = torch.tensor([0.1, 0.9, 7.0, 0.2, 0.8, 0.3, 7.0, 0.7])  # the three least sure are cells 1, 4 and 7
    window = dllm.Window(2, 10, 0, 2, 16, None, torch.ones(2, 1), canvas.live, canvas.turns)
    canvas.x[1, 10:] = EOS  # filled in, since the block was full and held one
    draw = torch.tensor([[0.0, 0.9, 0.0, 0.0, 0.3, 0.0, 0.0, 0.2]] * 2)
    prism.mask_again(canvas, window, [1], 1, draw)
    assert canvas.x[0, 2:10].tolist() == [5, 5, MASK, 5, 5, 5, MASK, 5]
    assert canvas.x[1, 2:].tolist() == [5, 5, MASK, 5, 5, 5, MASK, MASK] + [MASK] * 16
    prism.mask_again(canvas, window, [1], 9, draw)
    assert (canvas.x[1, 2:] == MASK).all() and canvas.x[1, :2].tolist() == [1, 2]


def test_the_score_is_the_mean_log_confidence_up_to_the_first_eos():
    """Would catch padding that counts as sure text, confidences of masks, and a sum that favours short answers."""
    canvas = dllm.prepare(random_model(0), [EOS, 2], "prism", LENGTHS | {"n": 2, "k": 1})
    canvas.x[:, 2:7] = torch.tensor([[5, 6, EOS, 7, EOS], [5, 6, MASK, 8, 9]])
    canvas.written[:, 2:7] = torch.tensor([[1, 1, 2, 1, 1], [1, 1, 0, 1, 1]])
    canvas.doubt[:, 2:7] = torch.tensor([[1.0, 3.0, 0.0, 99.0, 99.0], [1.0, 3.0, 99.0, 0.0, 0.0]])
    score = prism.mean_log_confidence(canvas, [0, 1])
    expected = [(math.log(0.5) + math.log(0.25)) / 3, (math.log(0.5) + math.log(0.25)) / 4]
    assert score.tolist() == pytest.approx(expected)
    assert prism.surest(canvas, [0, 1], 2) == [1, 0]
    canvas.x[0] = canvas.x[1]
    assert len(prism.surest(canvas, [0, 1], 2)) == 1  # alike: one of them is enough


@given(seeds)
def test_the_answer_is_the_trajectory_with_the_best_score(seed):
    """Would catch a choice by the first row, or among trajectories that were pruned."""
    scores = {}
    real = prism.surest

    def surest(s, pool, count):
        chosen = real(s, pool, count)
        if count == 1 and not len(s.live):
            scores["all"] = dict(zip(pool, prism.mean_log_confidence(s, pool).tolist()))
            scores["texts"] = {row: s.x[row].tolist() for row in pool}
        return chosen

    prism.surest = surest
    try:
        result = run(seed, "prism", **SEARCH | {"survivors": 3}, threshold=0.6, temperature=0.7, eos="fill")
    finally:
        prism.surest = real
    best = max(scores["all"], key=scores["all"].get)
    assert len(scores["all"]) == 2 and result.tokens[0].tolist() == scores["texts"][best] and result.tokens.shape[0] == 1


@given(seeds, st.sampled_from(CACHES))
def test_forwards_and_rows_are_sums_over_trajectories(seed, cache):
    """Would catch a search that is counted as one decode, or finished trajectories that are computed for nothing after the search."""
    canvas, seen = watched(seed, cache=cache, temperature=0.7)
    result = run(seed, "prism", random_prompt(seed, 5), **SEARCH | {"cache": cache, "threshold": 0.6, "temperature": 0.7})
    assert result.nfe == sum(len(live) for _, live, *_ in seen) and result.forwards == [result.nfe]
    steps = list(
        decode(random_model(seed), random_prompt(seed, 5), "prism", **LENGTHS | SEARCH, cache=cache, threshold=0.6, temperature=0.7)
    )
    assert result.rows == sum(step.rows for step in steps) and steps[-1].nfe == len(seen)
    for window, live, before, *_ in seen:
        if window.start != canvas.prompt_length:
            assert all((before[row] == MASK).any() for row in live)


@given(seeds, st.sampled_from([0.0, 0.7]))
def test_the_same_seed_searches_alike(seed, temperature):
    """Would catch randomness that the seed does not govern, also that of what is masked again."""
    one, two, other = (run(seed, "prism", **SEARCH, threshold=0.6, temperature=temperature, seed=number) for number in (4, 4, 5))
    assert same(one, two) and one.rows == two.rows


def test_another_seed_masks_other_tokens_again():
    """Negative control for the test above, greedy, where nothing else is random; but without copies nothing is."""
    forwards = lambda **changes: {run(3, "prism", **SEARCH | changes, threshold=0.6, seed=seed).nfe for seed in range(6)}  # noqa: E731
    assert len(forwards()) > 1 and len(forwards(remask=0)) == 1


@given(seeds)
def test_without_a_window_it_is_best_of_n(seed):
    """Would catch a search that prunes, copies or masks at other times than it was told: all go their own way, and the surest wins."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    settings = LENGTHS | {"threshold": 0.6, "cache": "none", "eos": "fill", "seed": seed}
    found = dllm.generate(model, prompt, "prism", n=5, k=5, search_from=0.0, search_to=0.0, **settings)
    plain = dllm.generate(model, [prompt] * 5, "fast-dllm", temperature=0.7, **settings)
    assert found.tokens[0].tolist() in plain.tokens.tolist() and found.rows == plain.rows


def test_trajectories_are_sampled_unless_told_otherwise():
    """Would catch a default at which all of them are the same."""
    assert dllm.plan("prism", {})[1].temperature == 0.7 and dllm.plan("fast-dllm", {})[1].temperature == 0.0
    assert dllm.plan("prism", {"temperature": 0.0})[1].temperature == 0.0
    step = next(decode(random_model(0), random_prompt(0, 5), "prism", n=8, k=2, threshold=0.0, **LENGTHS))
    assert len({tuple(row) for row in step.x.tolist()}) >= 4


@given(seeds, st.sampled_from(["leap", "hierarchy", "conv", "filter", "dkv"]))
def test_any_rule_that_remembers_nothing_can_be_searched(seed, rule):
    """Would catch a search that leans on the rule it is usually paired with: rows of a batch decode as they do alone."""
    rules = {
        "leap": dllm.local_leap(0.7, 0.3, 2),
        "hierarchy": related.hierarchy(0.3, 0.7),
        "conv": related.convolution(5, 1.0),
        "filter": related.learned(load_filter(random_filter(8)), 0.5),
        "dkv": dllm.threshold_rule(0.6),
    }
    view = related.delayed(3) if rule == "dkv" else dllm.cached("dual")
    search = prism.HierarchicalSearch(4, 2, 2, 1.3, 1, 0.1, 0.9, 2)
    mine = Strategy(rules[rule], view, dllm.serial, search=search)
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    together = run(seed, mine, *prompts)
    assert answers(together) == [answers(run(seed, mine, prompt))[0] for prompt in prompts]
    assert MASK not in sum(answers(together), [])


@given(seeds)
def test_a_copy_takes_the_cache_of_its_parent(seed):
    """Would catch a child with keys of tokens it does not have. With one layer a delayed cache is exact, if it is one's own."""
    search, rule = prism.HierarchicalSearch(6, 2, 2, 1.1, 1, 0.1, 0.9, 2), dllm.threshold_rule(0.8)
    cached, plain = (
        run(seed, Strategy(rule, view, dllm.serial, search=search), layers=1, temperature=0.7, seed=seed)
        for view in (related.delayed(100), dllm.full)
    )
    assert same(cached, plain) and cached.rows < plain.rows


def test_what_cannot_be_searched_is_refused():
    """Would catch a copy of a trajectory that does not remember what its parent did."""
    search = prism.HierarchicalSearch(4, 2, 2, 1.3, 1, 0.1, 0.9, 2)
    plain = dllm.threshold_rule(0.5)
    for rule, view, schedule, more in [
        (related.Saber(2, 8), dllm.full, dllm.serial, {}),
        (plain, dllm.full, dllm.serial, {"adjust": related.Credit(1, 1, 1)}),
        (plain, dllm.full, dllm.serial, {"ahead": related.Drafts(related.chain(4))}),
        (plain, dllm.block_causal, dllm.pipeline(0.1, 0.9), {}),
    ]:
        with pytest.raises(ValueError, match="a search copies canvases and caches"):
            Strategy(rule, view, schedule, search=search, **more)
    for settings, message in [
        ({"n": 0}, "n is 0, expected at least 1"),
        ({"n": 3}, "k is 4, expected at most n=3"),
        ({"survivors": 17}, "survivors is 17, expected at most n=16"),
        ({"decay": 0.5}, "decay is 0.5, expected at least 1"),
        ({"interval": 0}, "interval is 0, expected at least 1"),
        ({"search_from": 0.7}, "search_from is 0.7, expected at most search_to=0.6"),
        ({"search_to": 1.5}, "search_to is 1.5, expected between 0 and 1"),
        ({"remask": -1}, "remask is -1, expected at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            dllm.build("prism", **settings)


def test_the_command_line_searches_and_does_not_watch(saved, capsys, tmp_path):
    """Would catch a trace of one trajectory that is passed off as the decode."""
    command = ["--model", str(saved), "--prompt", "hello", "--strategy", "prism", "--n", "4", "--k", "2", "--gen-length", "32"]
    command_line.main(command)
    out, err = capsys.readouterr()
    assert out.strip() and "strategy prism" in err
    for flags in (["--watch", "0"], ["--explain"], ["--trace", str(tmp_path / "run.jsonl")]):
        with pytest.raises(SystemExit) as exit:
            command_line.main([*command, *flags])
        out, err = capsys.readouterr()
        assert (exit.value.code, out) == (
            2,
            "",
        ) and err == "dllm.py: prism decodes several canvases: --watch, --explain and --trace follow one\n"
    assert not (tmp_path / "run.jsonl").exists()
