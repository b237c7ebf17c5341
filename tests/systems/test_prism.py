"""Prism's search: a search of one is no search, copies differ only where they were masked again, and every trajectory is counted."""

import dataclasses
import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from conftest import EOS, MASK, random_model, random_prompt
from dllm import decode, finish, generate, plan, prepare, stream
from shared import CACHES, LENGTHS, again, answers, changed, refused, rules, run, same, seeds, views
from strategies import STRATEGIES, Strategy, Window, build, prism
from strategies.d2f import block_causal, pipeline
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import ORDERS, full, quota, serial

SEARCH = {"n": 6, "k": 2, "survivors": 2, "interval": 1, "search_from": 0.1, "search_to": 0.9, "decay": 1.3}


def searching(rule, view, n: int, **own) -> Strategy:
    """A search with these settings around the parts of others."""
    return Strategy(rule, view, serial, search=build("prism", n=n, **own).search)


@functools.cache
def watched(seed: int, **settings):
    """The canvas of a search, its result, and for each forward: the window, the live rows, the whole canvas before it (after the search),
    the whole canvas after, and the rows it computed."""
    settings = {"threshold": 0.6} | settings
    canvas = prepare(random_model(seed), [random_prompt(seed, 5)], "prism", LENGTHS | SEARCH | settings)
    seen, real = [], canvas.strategy.view

    def view(s, window):
        seen.append([window, s.live.tolist(), s.x.clone(), None, None])
        return real(s, window)

    def noted(steps):
        for step in steps:
            seen[-1][3:] = step.x.clone(), step.rows
            yield step

    canvas.strategy = dataclasses.replace(canvas.strategy, view=view)
    return canvas, finish(canvas, noted(stream(canvas))), seen


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
        common = {"threshold": 0.6, "temperature": temperature, "eos": "fill"}
        assert changed("prism", SEARCH | common, "fast-dllm", common) >= 3


@given(seeds, st.sampled_from([0.0, 0.7]), st.sampled_from(["fill", "stop"]))
def test_copies_differ_from_their_parent_only_where_they_were_masked_again(seed, temperature, eos):
    """Would catch a copy that is mixed from two, lost tokens, a masked prompt, and tokens taken back in another block or too many."""
    remask = 1 + seed % 2
    canvas, _, seen = watched(seed, temperature=temperature, eos=eos, remask=remask)
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
    canvas, result, seen = watched(seed, temperature=0.7, eos="fill", gen_length=lengths, **settings)
    assert result.tokens.shape[0] == 1
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
    """Would catch a pool of the surest, of empty cells or of another size, and an end that is left behind a block without EOS."""
    canvas, doubt = prepare(random_model(0), [1, 2], "prism", LENGTHS | {"n": 2, "k": 1}), torch.zeros(2, 26)
    canvas.x[:, 2:10] = torch.tensor([5, 5, MASK, 5, 5, 5, MASK, 5])
    doubt[:, 2:10] = torch.tensor([0.1, 0.9, 7.0, 0.2, 0.8, 0.3, 7.0, 0.7])  # the three least sure are cells 1, 4 and 7
    window = Window(2, 10, 0, 2, 16, None, torch.ones(2, 1), canvas.live, canvas.forwards)
    canvas.x[1, 10:] = EOS  # filled in, since the block was full and held one
    draw = torch.tensor([[0.0, 0.9, 0.0, 0.0, 0.3, 0.0, 0.0, 0.2]] * 2)
    prism.mask_again(canvas, window, doubt, [1], 1, draw)
    assert canvas.x[0, 2:10].tolist() == [5, 5, MASK, 5, 5, 5, MASK, 5]
    assert canvas.x[1, 2:].tolist() == [5, 5, MASK, 5, 5, 5, MASK, MASK] + [MASK] * 16
    prism.mask_again(canvas, window, doubt, [1], 9, draw)
    assert (canvas.x[1, 2:] == MASK).all() and canvas.x[1, :2].tolist() == [1, 2]


def test_the_score_is_the_mean_log_confidence_up_to_the_first_eos():
    """Would catch padding that counts as sure text, confidences of masks, and a sum that favours short answers."""
    canvas, doubt = prepare(random_model(0), [EOS, 2], "prism", LENGTHS | {"n": 2, "k": 1}), torch.zeros(2, 26)
    canvas.x[:, 2:7] = torch.tensor([[5, 6, EOS, 7, EOS], [5, 6, MASK, 8, 9]])
    canvas.written[:, 2:7] = torch.tensor([[1, 1, 2, 1, 1], [1, 1, 0, 1, 1]])
    doubt[:, 2:7] = torch.tensor([[1.0, 3.0, 0.0, 99.0, 99.0], [1.0, 3.0, 99.0, 0.0, 0.0]])
    score = prism.mean_log_confidence(canvas, doubt, [0, 1])
    expected = [(math.log(0.5) + math.log(0.25)) / 3, (math.log(0.5) + math.log(0.25)) / 4]
    assert score.tolist() == pytest.approx(expected)
    assert prism.surest(prism.ranked(canvas, doubt), [0, 1], 2) == [1, 0]
    canvas.x[0] = canvas.x[1]
    assert len(prism.surest(prism.ranked(canvas, doubt), [0, 1], 2)) == 1  # alike: one of them is enough


@pytest.mark.parametrize("order", ["low_confidence", "margin", "entropy"])
@pytest.mark.parametrize("eos", ["fill", "defer"])
def test_a_token_is_as_sure_as_its_own_probability(monkeypatch, order, eos):
    """Would catch a doubt that an order, or eos=defer, has replaced: an EOS that was written last would count as impossible."""
    judged, real, ends = [], prism.ranked, 0
    monkeypatch.setattr(prism, "ranked", lambda s, doubt: judged.append(doubt.clone()) or real(s, doubt))
    for seed in (7, 10, 11, 23):
        mine = searching(quota, full, 3, k=3, search_from=0.0, search_to=0.0)  # all go their own way, to the end
        mine = dataclasses.replace(mine, order=ORDERS[order])
        expected = torch.zeros(3, 29)
        for step in decode(random_model(seed), random_prompt(seed, 5), mine, **LENGTHS, eos=eos, temperature=0.7, seed=seed):
            z, span = step.logits.double(), slice(step.window.start, step.window.end)
            probability = z.softmax(-1).gather(-1, step.token[..., None])[..., 0]
            rows = expected[step.window.live]
            rows[:, span] = torch.where(step.commit, 1 / probability - 1, rows[:, span]).float()
            expected[step.window.live] = rows
            ends += int((step.commit & (step.token == EOS)).sum())
        torch.testing.assert_close(judged[-1], expected, rtol=1e-3, atol=1e-6)
    assert ends and judged[-1].max() < kernels.LARGEST


def test_a_copy_is_as_sure_as_its_parent(monkeypatch):
    """Would catch a child that is judged by how sure the row was whose place it takes."""
    copies, real = [], prism.mask_again

    def mask_again(s, window, doubt, rows, *more):
        for row in rows:
            parents = [p for p in s.live.tolist() if p not in rows and s.x[p].equal(s.x[row])]
            copies.append(any(doubt[row].equal(doubt[p]) for p in parents))
        real(s, window, doubt, rows, *more)

    monkeypatch.setattr(prism, "mask_again", mask_again)
    for seed in range(4):
        again(seed, "prism", **SEARCH, threshold=0.6, temperature=0.7)
    assert len(copies) >= 8 and all(copies)


@given(seeds)
def test_the_answer_is_the_trajectory_with_the_best_score(seed):
    """Would catch a choice by the first row, or among trajectories that were pruned."""
    scores, seen, real, read = {}, {}, prism.surest, prism.ranked

    def ranked(s, doubt):
        seen.update(s=s, doubt=doubt)
        return read(s, doubt)

    def surest(known, pool, count):
        s = seen["s"]
        if count == 1 and not len(s.live):
            scores["all"] = dict(zip(pool, prism.mean_log_confidence(s, seen["doubt"], pool).tolist()))
            scores["texts"] = {row: s.x[row].tolist() for row in pool}
        return real(known, pool, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prism, "surest", surest)
        patch.setattr(prism, "ranked", ranked)
        result = again(seed, "prism", **SEARCH | {"survivors": 3}, threshold=0.6, temperature=0.7, eos="fill")
    best = max(scores["all"], key=scores["all"].get)
    assert len(scores["all"]) == 2 and result.tokens[0].tolist() == scores["texts"][best] and result.tokens.shape[0] == 1


@given(seeds, st.sampled_from(CACHES))
def test_forwards_and_rows_are_sums_over_trajectories(seed, cache):
    """Would catch a search that is counted as one decode, or finished trajectories that are computed for nothing after the search."""
    canvas, result, seen = watched(seed, cache=cache, temperature=0.7)
    assert result.nfe == sum(len(live) for _, live, *_ in seen) and result.forwards == [result.nfe]
    assert result.rows == sum(rows for *_, rows in seen)
    for window, live, before, *_ in seen:
        if window.start != canvas.prompt_length:
            assert all((before[row] == MASK).any() for row in live)


@given(seeds, st.sampled_from([0.0, 0.7]))
def test_the_same_seed_searches_alike(seed, temperature):
    """Would catch randomness that the seed does not govern, also that of what is masked again."""
    one, two = (again(seed, "prism", **SEARCH, threshold=0.6, temperature=temperature, seed=4) for _ in range(2))
    assert same(one, two) and one.rows == two.rows


def test_another_seed_masks_other_tokens_again():
    """Negative control for the test above, greedy, where nothing else is random; but without copies nothing is."""
    forwards = lambda **changes: {run(3, "prism", **SEARCH | changes, threshold=0.6, seed=seed).nfe for seed in range(6)}
    assert len(forwards()) > 1 and len(forwards(remask=0)) == 1


@given(seeds)
def test_without_a_window_it_is_best_of_n(seed):
    """Would catch a search that prunes, copies or masks at other times than it was told: all go their own way, and the surest wins."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    settings = LENGTHS | {"threshold": 0.6, "cache": "none", "eos": "fill", "seed": seed}
    found = generate(model, prompt, "prism", n=5, k=5, search_from=0.0, search_to=0.0, **settings)
    plain = generate(model, [prompt] * 5, "fast-dllm", temperature=0.7, **settings)
    assert found.tokens[0].tolist() in plain.tokens.tolist() and found.rows == plain.rows


def test_trajectories_are_sampled_unless_told_otherwise():
    """Would catch a default at which all of them are the same."""
    assert plan("prism", {})[1].temperature == 0.7 and plan("fast-dllm", {})[1].temperature == 0.0
    assert plan("prism", {"temperature": 0.0})[1].temperature == 0.0
    step = next(decode(random_model(0), random_prompt(0, 5), "prism", n=8, k=2, threshold=0.0, **LENGTHS))
    assert len({tuple(row) for row in step.x.tolist()}) >= 4


NAMES = list(rules("localleap", "hierarchy", "conv", "learn2pd", "threshold"))


@given(seeds, st.sampled_from(NAMES), st.data())
def test_any_rule_that_remembers_nothing_can_be_searched(seed, rule, data):
    """Would catch a search that leans on the rule it is usually paired with: rows of a batch decode as they do alone."""
    seen = {"dual": cached("dual")} | (views("dkv") if rule == "threshold" else {})
    view = seen[data.draw(st.sampled_from(list(seen)))]
    mine = searching(rules(rule)[rule], view, 4, k=2, survivors=2, decay=1.3, interval=1, search_to=0.9)
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    together = run(seed, mine, *prompts)
    assert answers(together) == [answers(run(seed, mine, prompt))[0] for prompt in prompts]
    assert MASK not in sum(answers(together), [])


@pytest.mark.skipif("dkv" not in STRATEGIES, reason="its file is not there")
@given(seeds)
def test_a_copy_takes_the_cache_of_its_parent(seed):
    """Would catch a child with keys of tokens it does not have. With one layer a delayed cache is exact, if it is one's own."""
    delayed = build("dkv", refresh=100).view
    own = {"n": 6, "k": 2, "survivors": 2, "decay": 1.1, "interval": 1, "search_to": 0.9}
    kept, plain = (run(seed, searching(threshold_rule(0.8), view, **own), layers=1, temperature=0.7, seed=seed) for view in (delayed, full))
    assert same(kept, plain) and kept.rows < plain.rows


def test_what_cannot_be_searched_is_refused():
    """Would catch a copy of a trajectory that does not remember what its parent did."""
    search, plain = build("prism", n=4, k=2).search, threshold_rule(0.5)
    parts = [(rule, None) for rule in rules("saber").values()]
    for rule, forward in parts + [(plain, build(name).forward) for name in ("credit", "freedave") if name in STRATEGIES]:
        with pytest.raises(ValueError, match="a search copies canvases and caches"):
            Strategy(rule, full, serial, forward=forward, search=search)
    with pytest.raises(ValueError, match="a search needs one block at a time"):
        Strategy(plain, block_causal(), pipeline(0.1, 0.9), search=search)
    for settings, message in [
        ({"n": 0}, "n is 0, expected between 1 and 1000"),
        ({"n": 3}, "k is 4, expected at most n=3"),
        ({"survivors": 17}, "survivors is 17, expected at most n=16"),
        ({"decay": 0.5}, "decay is 0.5, expected at least 1"),
        ({"interval": 0}, "interval is 0, expected at least 1"),
        ({"search_from": 0.7}, "search_from is 0.7, expected at most search_to=0.6"),
        ({"search_to": 1.5}, "search_to is 1.5, expected between 0 and 1"),
        ({"remask": -1}, "remask is -1, expected at least 0"),
    ]:
        refused(random_model(0), "prism", message, **settings)


def test_the_command_line_searches_and_does_not_watch(saved, capsys, tmp_path):
    """Would catch a trace of one trajectory that is passed off as the decode."""
    from lab import command_line

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
