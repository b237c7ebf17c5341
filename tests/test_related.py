"""What the related systems promise, each with the equality that defines it and a control that shows where it differs."""

import dataclasses

import pytest
import torch
from conftest import MASK, random_model, random_prompt
from hypothesis import given
from hypothesis import strategies as st
from test_dllm import CACHES, LENGTHS, ONE, answers, committed, run, same, seeds

import dllm
import related
from dllm import Scores, Strategy, Window, decode
from lab.oracle import Oracle


def changed(strategy, settings, other, others) -> int:
    """On how many of eight models the tokens differ."""
    return sum(not run(seed, strategy, **settings).tokens.equal(run(seed, other, **others).tokens) for seed in range(8))


# --- rules


def test_hierarchy_on_the_worked_example():
    """Would catch runs that are joined over a written token, and a best token of each run that is not the surest."""
    assert committed(related.hierarchy(0.4, 0.9), masked=[0, 1, 2, 4, 5, 7]) == [0, 4, 7]
    assert committed(related.hierarchy(0.55, 0.78), masked=[0, 1, 2, 4, 5, 7]) == [0, 1, 4]


@given(seeds, st.sampled_from(["none", "dual"]))
def test_an_unreachable_hierarchy_commits_one_token_a_forward(seed, cache):
    """Would catch a rule that commits what is below its thresholds."""
    assert same(run(seed, "hierarchy", high=2.0, low=2.0, cache=cache), run(seed, "fast-dllm", threshold=None, cache=cache))


@given(seeds)
def test_hierarchy_halves_the_runs(seed):
    """Would catch a run without a commit: with low = 0 a block of 8 takes between log2(8 + 1) and 8 forwards."""
    result = run(seed, "hierarchy", high=2.0, low=0.0, cache="none")
    assert 3 * 4 <= result.nfe <= 24
    for step in decode(random_model(seed), random_prompt(seed, 5), "hierarchy", high=2.0, low=0.0, cache="none", **LENGTHS):
        masks = "".join("x" if c else "." for c in step.candidates[0])
        taken = "".join("!" if c else m for c, m in zip(step.commit[0], masks))
        assert all(run.count("!") == 1 for run in taken.split(".") if run)


@given(seeds, st.sampled_from([0.4, 0.7]))
def test_credit_of_weight_zero_is_the_plain_threshold(seed, threshold):
    """Would catch an adjustment that changes more than the credit."""
    assert same(run(seed, "credit", alpha=0.0, threshold=threshold), run(seed, "fast-dllm", threshold=threshold))


def test_credit_grows_with_every_forward_that_agrees():
    """Would catch credit that is not kept, not faded, given to written cells, or carried into the next block."""
    credit, candidates = related.Credit(alpha=2.0, gamma=0.5, beta=0.5), torch.tensor([[True, False]])
    logits = torch.tensor([[[0.0, 0.0, 2.0], [0.0, 0.0, 2.0]]])
    confidence = logits[0, 0].softmax(-1)[2].item()
    for age, owned in ((0, 1.0), (1, 1.5), (2, 1.75), (0, 1.0)):
        got = credit(logits, candidates, Window(0, 2, age, 0, 0, None, **ONE))
        expected = 2.0 + 2.0 * torch.tensor(owned * confidence**0.5).log1p()
        torch.testing.assert_close(got[0, 0], torch.tensor([0.0, 0.0, expected]))
        assert got[0, 1].equal(logits[0, 1])


@given(seeds, st.sampled_from(CACHES), st.sampled_from([None, 0.5]))
def test_smoothing_of_weight_zero_is_the_plain_decoder(seed, cache, threshold):
    """Would catch softened masks that change more than the weight says, to the last bit, and a threshold that sinks unasked."""
    plain = run(seed, "fast-dllm", threshold=threshold, cache=cache)
    rule = dllm.quota if threshold is None else dllm.threshold_rule(threshold)
    mine = Strategy(rule, dllm.cached(cache), dllm.serial, soften=related.smoothing(0.0, 0.0, 0.0))
    assert same(run(seed, mine), plain)
    if threshold:
        named = run(seed, "smoothing", threshold=threshold, weight=0.0, growth=0.0, fall=None, cache=cache)
        assert same(named, plain, run(seed, "smoothing", threshold=threshold, max_weight=0.0, weight=0.0, fall=None, cache=cache))


@given(seeds)
def test_smoothing_adds_the_expected_embedding_of_the_step_before(seed):
    """Would catch a weight of another step, written cells or later blocks that are softened, and what a block has left behind."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    table, canvas, expected = model.wte.weight, torch.tensor([prompt + [MASK] * 24]), torch.zeros(1, 29, 40)
    softened = {"weight": 0.3, "growth": 0.1, "max_weight": 0.7, "fall": 0.2, "threshold": 0.5}
    for t, step in enumerate(decode(model, prompt, "smoothing", cache="none", **softened, **LENGTHS)):
        span = slice(step.window.start, step.window.end)
        logits = model(canvas, added=(expected * (canvas == MASK)[..., None]) @ table)[:, span]
        logits[..., MASK] = -torch.inf
        probability = logits.softmax(-1)
        torch.testing.assert_close(step.logits, logits, rtol=1e-3, atol=1e-3)
        sure, passing = step.scores.confidence[step.candidates], max(0.5, 1 - 0.2 * t)
        assert step.commit[step.candidates].equal(sure >= passing) or (sure < passing).all() or (sure - passing).abs().min() < 1e-5
        canvas, expected[:, span] = step.x.clone(), min(0.3 + 0.1 * t, 0.7) * probability


@given(seeds, st.sampled_from(["leap", "hierarchy", "saber", "editing", "quota"]), st.sampled_from([0.0, 0.7]), st.data())
def test_smoothing_works_with_any_rule_cache_and_schedule(seed, rule, cfg_scale, data):
    """Would catch rows of a batch whose masks are softened by one another, or by the forwards in which they waited."""
    views = {cache: dllm.cached(cache) for cache in CACHES} | {"delayed": related.delayed(3), "pruned": dllm.cached("prefix", 3)}
    if rule in ("saber", "editing"):
        del views["delayed"]
    mine = {"rule": RULES[rule], "view": views[data.draw(st.sampled_from(list(views)))], "schedule": dllm.serial}
    if rule == "leap" and data.draw(st.booleans()):
        mine |= {"view": dllm.block_causal, "schedule": dllm.pipeline(0.1, 0.5)}
    mine = Strategy(**mine, soften=related.smoothing(0.15, 0.02, 0.3))  # more of it feeds back rounding errors
    prompts = [random_prompt(seed + i, length) for i, length in enumerate((9, 3, 6))]
    together = run(seed, mine, *prompts, cfg_scale=cfg_scale)
    assert answers(together) == [answers(run(seed, mine, prompt, cfg_scale=cfg_scale))[0] for prompt in prompts]
    assert MASK not in sum(answers(together), [])


@given(seeds)
def test_saber_takes_back_fewer_than_it_commits(seed):
    """Would catch a decode that does not end: every forward leaves fewer masks than it found."""
    before, revised = 24, 0
    for step in decode(random_model(seed), random_prompt(seed, 5), "saber", **LENGTHS):
        left = int((step.x[:, 5:] == MASK).sum())
        assert left < before
        before, revised = left, revised + int((step.commit & (step.token == MASK)).sum())
    assert left == 0


def test_saber_does_take_back():
    """Negative control for the test above, and mu = 0, which never does."""
    backs = [
        sum(int((step.token[step.commit] == MASK).sum()) for step in decode(random_model(seed), [1, 2, 3], "saber", mu=mu, **LENGTHS))
        for seed in range(8)
        for mu in (8, 0)
    ]
    assert sum(back > 0 for back in backs[::2]) >= 4 and not any(backs[1::2])


@given(seeds)
def test_saber_without_backtracking_is_a_threshold_at_the_mean_so_far(seed):
    """Would catch a mean over other tokens than those committed in this block, or over confidences of another forward."""
    model, prompt = random_model(seed), random_prompt(seed, 5)
    chosen: dict[int, float] = {}
    for step in decode(model, prompt, "saber", n=1, mu=0, **LENGTHS):
        if step.window.age == 0:
            chosen = {}
        mean = sum(chosen.values()) / len(chosen) if chosen else 1.0
        sure = {i: step.scores.confidence[0, i].item() for i in step.candidates[0].nonzero()[:, 0].tolist()}
        expected = [i for i, c in sure.items() if c > mean + 1e-6] or [max(sure, key=sure.get)]
        near = any(abs(c - mean) < 1e-5 for c in sure.values())
        got = step.commit[0].nonzero()[:, 0].tolist()
        assert got == expected or near
        chosen |= {i: sure[i] for i in got}


def test_editing_replaces_only_what_the_model_has_left():
    """Would catch an edit of a full block or of a finished row, and edits below the threshold. Candidates are cells 0 and 1."""
    scores = Scores(torch.full((2, 4), 7), 1 / torch.tensor([[0.9, 0.5, 0.95, 0.6]] * 2) - 1, torch.zeros(2, 4), torch.zeros(2, 4))
    candidates = torch.tensor([[True, True, False, False], [False] * 4])
    write, token = related.editing(0.8, 0.9)(scores, candidates, None)
    assert write.tolist() == [[True, False, True, False], [False] * 4] and (token == 7).all()


@given(seeds)
def test_editing_with_an_unreachable_threshold_is_the_plain_rule(seed):
    """Would catch an edit that no threshold stops."""
    assert same(run(seed, "editing", threshold=0.6, edit_threshold=2.0), run(seed, "fast-dllm", threshold=0.6))


@given(seeds)
def test_convolution_over_everything_is_llada_without_blocks(seed):
    """Would catch weights that differ where all see the same neighbours."""
    wide = run(seed, "conv", width=400, block_length=24)
    assert same(wide, run(seed, "llada", block_length=24))


def test_convolution_starts_where_text_stands():
    """Would catch a window that is off by one: with a width of 5 only two cells have a written neighbour at first."""
    step = next(decode(random_model(0), [1, 2, 3], "conv", width=5, gen_length=24, steps=2))
    assert step.commit[0].nonzero()[:, 0].tolist()[:2] == [0, 1] and step.window.end - step.window.start == 24


@pytest.mark.parametrize("order", ["margin", "entropy"])
def test_orders_rank_by_what_they_name(order):
    """Would catch an order that is turned round: the first commit is the widest margin, or the least entropy."""
    for seed in range(5):
        step = next(decode(random_model(seed), random_prompt(seed, 5), "llada", remasking=order, **LENGTHS))
        best = step.scores.margin.argmax() if order == "margin" else step.scores.entropy.argmin()
        assert step.commit[0].nonzero()[:, 0].tolist() == [int(best)]


# --- caches


@given(seeds, st.sampled_from([0.3, 0.6]))
def test_a_vicinity_as_wide_as_the_canvas_is_no_cache(seed, tau):
    """Would catch slots that the widened query misses."""
    assert same(
        run(seed, "fast-dllm", cache="vicinity", threshold=tau, gen_length=16),
        run(seed, "fast-dllm", cache="none", threshold=tau, gen_length=16),
    )


def test_a_vicinity_lies_between_dual_and_full():
    """Would catch a vicinity that recomputes all, or nothing more than the block."""
    prompt = random_prompt(0, 40)
    dual, vicinity, none = (run(0, "fast-dllm", prompt, cache=c, threshold=None, gen_length=64).rows for c in ("dual", "vicinity", "none"))
    assert dual < vicinity < none


@given(seeds)
def test_a_frozen_prefix_computes_the_prompt_once(seed):
    """Would catch a refresh, and a block that is frozen while its last tokens' keys are still those of masks."""
    frozen, prefix = (run(seed, "fast-dllm", random_prompt(seed, 9), cache=cache, threshold=2.0) for cache in ("frozen", "prefix"))
    assert frozen.rows == 33 + 7 * 24 + 24 + 7 * 16 + 16 + 7 * 8  # a block's first forward takes the block before it along
    assert frozen.rows < prefix.rows


@given(seeds)
def test_a_prefix_that_is_never_frozen_is_no_cache(seed):
    """Would catch an approximation beyond what is frozen: with nothing final, FreeCache recomputes and sees the whole canvas."""
    frozen = dllm.cached("frozen")
    never = lambda s, window: frozen(s, dataclasses.replace(window, stale=0))  # noqa: E731
    one, other = (run(seed, Strategy(dllm.quota, view, dllm.serial)) for view in (never, dllm.full))
    assert one.tokens.equal(other.tokens) and one.rows == other.rows


@given(seeds)
def test_dkv_that_refreshes_always_is_no_cache(seed):
    """Would catch a cached path that differs in more than staleness."""
    assert same(run(seed, "dkv", refresh=1), run(seed, "llada"))


@given(seeds)
def test_dkv_recomputes_masks_and_what_was_written_last(seed):
    """Would catch a token that is cached in the forward that writes it: its keys would be those of a mask."""
    steps = decode(random_model(seed), random_prompt(seed, 6), "dkv", refresh=5, **LENGTHS)
    masks, wrote = 24, 0
    for step in steps:
        expected = 30 if step.window.age < 2 or step.window.age % 5 == 0 else masks + wrote
        assert step.rows == expected
        masks, wrote = int((step.x == MASK).sum()), int(step.commit.sum())


# --- schedules


@given(seeds)
def test_d3llm_one_block_at_a_time_is_entropy_order(seed):
    """Would catch a pipeline that opens or commits too early."""
    serial = run(seed, "llada", remasking="entropy", eos="stop")
    assert same(run(seed, "d3llm", theta=0.0, block_add_threshold=1.0, decoded_token_threshold=1.0, refresh=1), serial)


@given(seeds)
def test_a_growing_canvas_is_serial_decoding_that_sees_nothing_behind(seed):
    """Would catch a suffix that is seen, or a block whose final keys and values are not computed. One layer makes the prefix exact."""
    model, prompt = random_model(seed, n_layers=1), random_prompt(seed, 5)
    grown = run(seed, "dllm-var", prompt, layers=1, threshold=0.5, eos="fill")
    text = list(prompt)
    for _ in range(3):
        text += [MASK] * 8
        while MASK in text:
            logits = model(torch.tensor([text]))[0]
            logits[:, MASK] = -torch.inf
            best, token = logits.softmax(-1).max(-1)
            masked = [i for i, t in enumerate(text) if t == MASK]
            take = [i for i in masked if best[i] >= 0.5] or [max(masked, key=lambda i: best[i].item())]
            for i in take:
                text[i] = int(token[i])
    assert grown.tokens[0].tolist() == text


def test_a_growing_canvas_computes_no_more_than_the_prompt_and_two_blocks():
    """Would catch a suffix or a prefix that is computed anyway."""
    for step in decode(random_model(1), random_prompt(1, 20), "dllm-var", threshold=2.0, **LENGTHS):
        assert step.rows <= (28 if step.nfe == 1 else 16)


# --- negative controls


def test_they_differ_where_they_approximate():
    """Equalities that always hold prove nothing: at ordinary settings each of these changes some tokens."""
    plain = {"cache": "none", "threshold": 0.5}
    assert changed("fast-dllm", plain, "fast-dllm", plain | {"cache": "frozen"}) >= 4
    assert changed("fast-dllm", plain | {"threshold": None}, "dkv", {"refresh": 8}) >= 4
    assert changed("fast-dllm", plain, "hierarchy", {"cache": "none", "high": 0.5, "low": 0.1}) >= 4
    assert changed("fast-dllm", plain, "credit", {"cache": "none", "threshold": 0.5}) >= 2
    assert changed("fast-dllm", plain, "smoothing", {"cache": "none", "threshold": 0.5, "fall": None}) >= 4
    assert changed("fast-dllm", plain, "smoothing", {"cache": "none", "threshold": 0.5, "weight": 0.0, "growth": 0.0}) >= 2
    assert changed("fast-dllm", plain, "editing", {"cache": "none", "threshold": 0.5, "edit_threshold": 0.5}) >= 2
    assert changed("llada", {}, "saber", {}) >= 4
    assert changed("llada", {"block_length": 24}, "conv", {"block_length": 24, "width": 5}) >= 4
    assert changed("llada", {"remasking": "margin"}, "llada", {"remasking": "entropy"}) >= 2
    assert changed("d3llm", {"theta": 1.0}, "llada", {"remasking": "entropy", "eos": "stop"}) >= 4
    assert changed("dllm-var", {"threshold": 0.5}, "fast-dllm", plain | {"eos": "stop"}) >= 4


def test_memory_of_a_rule_is_that_of_one_decode():
    """Would catch state that leaks from one decode into the next when a Strategy is used twice."""
    mine = Strategy(related.Saber(2, 8), dllm.full, dllm.serial, adjust=related.Credit(0.7, 0.2, 0.8))
    assert answers(run(3, mine)) == answers(run(3, mine))
    for prompts in ([[1, 2, 3]], [[1, 2, 3], [4, 5]]):
        assert answers(run(3, mine, *prompts))[0] == answers(run(3, mine, [1, 2, 3]))[0]


# --- AR-ness, and a rule of one's own


@given(seeds)
def test_left_to_right_decoding_is_entirely_autoregressive(seed):
    """Would catch an order that is read backwards, and EOS padding that counts as text."""
    result = run(seed, "ar", block_length=1)
    assert result.lengths[0] == 0 or result.ar_ness() == (1.0, 1.0)


def test_ar_ness_by_hand():
    """Would catch an order by position instead of by forward. Written: cell 2, then 0 and 1, then 3; EOS behind them does not count."""
    result = dllm.Result(torch.zeros(1, 6), torch.tensor([[0, 2, 2, 1, 3, 1]]), [4], 3, [3], 0, 1.0, 1)
    assert result.ar_ness() == pytest.approx((1 / 3, 3 / 4))  # 2 0 1 3: one of three steps to the right, cell 2 was not the leftmost
    assert result.ar_ness(k=3) == (0.0, 1.0)


def test_a_rule_of_ones_own(tmp_path, capsys):
    """Would catch a file that is read but not used, and settings or names that end in a traceback."""
    file = tmp_path / "my_rule.py"
    file.write_text("def rule(scores, candidates, window):\n    return scores.confidence >= 0.5\n\nbroken = 1 / len('a')\n")
    for cache in ("none", "dual", "vicinity"):
        assert same(run(3, f"{file}:rule", cache=cache), run(3, "fast-dllm", threshold=0.5, cache=cache))
    for name, message in [
        (f"{file}:nothing", "defines no function 'nothing'"),
        (f"{tmp_path}/none.py:rule", "there is no file"),
        (f"{file}:broken", "defines no function 'broken'"),
        ("none", "or FILE.py:RULE for a rule of your own"),
    ]:
        with pytest.raises(ValueError, match=message):
            dllm.build(name)
    for text, error in (("1 / 0", "ZeroDivisionError"), ("{}['x']", "KeyError"), ("raise SystemExit", "SystemExit")):
        bad = tmp_path / f"{error}.py"
        bad.write_text(text)
        with pytest.raises(ValueError, match=f"does not run: {error}"):
            dllm.build(f"{bad}:rule")
    with pytest.raises(ValueError, match="has no setting factor: that is a setting of fast-dllm"):
        dllm.build(f"{file}:rule", factor=1.0)


# --- speculation


@given(seeds, st.sampled_from([1, 2, 4, 8]), st.sampled_from(CACHES), st.sampled_from([None, 0.6]))
def test_freedave_is_lossless(seed, depth, cache, threshold):
    """Would catch logits of another canvas, or of a cache that a draft has written to; depth 1 must not even save a forward."""
    drafted = run(seed, "freedave", depth=depth, cache=cache, threshold=threshold)
    plain = run(seed, "fast-dllm", cache=cache, threshold=threshold)
    assert drafted.tokens.equal(plain.tokens) and drafted.nfe <= plain.nfe and (depth > 1 or drafted.nfe == plain.nfe)


RULES = {
    "hierarchy": related.hierarchy(0.3, 0.7),
    "leap": dllm.local_leap(0.7, 0.3, 2),
    "conv": related.convolution(5, 1.0),
    "saber": related.Saber(2, 8),
    "editing": related.editing(0.6, 0.4),
    "quota": dllm.quota,
}


@given(seeds, st.sampled_from(list(RULES)), st.booleans(), st.sampled_from([0.0, 0.7]), st.sampled_from([0.0, 0.7]), st.data())
def test_any_graph_is_lossless_for_any_rule(seed, rule, credit, temperature, cfg_scale, data):
    """Would catch a rule that remembers and is asked twice, noise that is drawn out of turn, and rows that take each other's drafts."""
    node = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=3).map(tuple)
    graph = tuple(data.draw(st.lists(node, max_size=4)))
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    settings = {"temperature": temperature, "cfg_scale": cfg_scale, "steps": 12 if rule in ("quota", "conv") else None}
    results = []
    for ahead in (None, related.Drafts(graph)):
        adjust = related.Credit(0.7, 0.2, 0.8) if credit else None
        mine = Strategy(RULES[rule], dllm.cached("dual"), dllm.serial, adjust=adjust, ahead=ahead)
        results.append(run(seed, mine, *prompts, **settings))
    assert results[0].tokens.equal(results[1].tokens)
    assert all(a >= b for a, b in zip(results[0].forwards, results[1].forwards))


def test_drafts_are_often_right():
    """Negative control for the tests above: drafts that never match would be lossless, too."""
    saved = [run(seed, "fast-dllm", cache="dual", threshold=None).nfe - run(seed, "freedave").nfe for seed in range(8)]
    assert sum(count >= 3 for count in saved) >= 4


@given(seeds, st.sampled_from(["0", "1", "0,2,3", "0,1,2,3", None]), st.sampled_from(CACHES), st.sampled_from([None, 0.6]))
def test_swift_is_lossless_for_any_layers(seed, skip, cache, threshold):
    """Would catch a draft that is taken unverified, one that writes to the cache, and a last layer whose rows are not cut out."""
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    plain = run(seed, "fast-dllm", *prompts, layers=4, cache=cache, threshold=threshold)
    assert run(seed, "swift", *prompts, layers=4, skip=skip, cache=cache, threshold=threshold).tokens.equal(plain.tokens)


def test_skipping_no_layer_is_freedave_with_a_draft_forward_too_many():
    """Would catch draft forwards, or their rows, that are not counted: drafts of the whole network are right, one commit for one forward."""
    for seed in range(5):
        rule = Strategy(dllm.quota, dllm.cached("dual"), dllm.serial, ahead=related.Drafts(related.chain(2), skip=()))
        result, plain = run(seed, rule), run(seed, "fast-dllm", cache="dual", threshold=None)
        assert result.tokens.equal(plain.tokens) and result.nfe == 3 * (1 + 2 * 4)  # a block: 1, then a draft and a check for two commits
        assert result.rows == 3 * (plain.rows // 3 - 7 * 8 + 4 * (8 + 2 * 8))


def test_fewer_layers_draft_worse():
    """Negative control for the two tests above: were the layers not left out, any set would save as many forwards as none."""
    nfe = {
        skip: sum(
            run(seed, Strategy(dllm.quota, dllm.cached("dual"), dllm.serial, ahead=related.Drafts(related.chain(4), skip)), layers=4).nfe
            for seed in range(4)
        )
        for skip in ((), (1,), (0, 1, 2))
    }
    assert nfe[()] < nfe[(1,)] < nfe[(0, 1, 2)]


def test_layers_that_do_not_exist_are_refused():
    """Would catch a number that is silently no layer, and a text that ends in a traceback."""
    for skip, message in (("7", "skip names layer 7, but the model's 2 layers"), ("1;2", "skip is '1;2', expected numbers of layers")):
        with pytest.raises(ValueError, match=message):
            run(0, "swift", skip=skip)


def test_what_cannot_be_combined_is_refused():
    """Would catch a combination that runs and is wrong."""
    with pytest.raises(ValueError, match="drafts and softened masks cannot be combined"):
        Strategy(dllm.quota, dllm.full, dllm.serial, ahead=related.Drafts(related.chain(4)), soften=related.smoothing(0.1, 0.0, 0.1))
    with pytest.raises(ValueError, match="softened masks are mixtures of embeddings, and this model has none"):
        decode(Oracle("bits-4"), Oracle("bits-4").encode_chat([]), "smoothing", gen_length=4, block_length=4)
    for view, schedule in ((related.delayed(8), dllm.serial), (dllm.block_causal, dllm.pipeline(0.1, 0.95))):
        with pytest.raises(ValueError, match="drafts need one block at a time"):
            Strategy(dllm.threshold_rule(0.5), view, schedule, ahead=related.Drafts(related.chain(4)))
    pipe = dllm.pipeline(0.1, 0.95)
    for rule, adjust in (
        (related.Saber(2, 8), None),
        (related.editing(0.9, 0.9), None),
        (dllm.threshold_rule(0.9), related.Credit(1, 1, 1)),
    ):
        with pytest.raises(ValueError, match="needs one block at a time"):
            Strategy(rule, dllm.full, pipe, adjust=adjust)
    with pytest.raises(ValueError, match="a quota of tokens per step has no meaning"):
        Strategy(related.convolution(5, 1.0), dllm.full, pipe)
    with pytest.raises(ValueError, match="steps 2 do not divide evenly among 3 blocks"):
        run(0, "conv", steps=2)
    for rule in (related.Saber(2, 8), related.editing(0.9, 0.9)):
        with pytest.raises(ValueError, match="contradicts a cache"):
            Strategy(rule, related.delayed(8), dllm.serial)
