"""WeDLM: what leaves the window is what a causal prefill computes; masks see what is written to their right."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, MASK, random_model, random_prompt
from dllm import decode, prepare, stream
from kernels import Scores
from model import Pass
from shared import LENGTHS, answers, refused, run, same, seeds
from strategies import Window, build, has
from strategies.wedlm import clear, in_order

ONE = {"block_length": 1}
SETTINGS = {"threshold": 1.5, "penalty": 0.05, "window": 6}


def caches(seed: int, view=None, **settings):
    """The cache after the last forward but one, where the first mask stood before it, and the cache of a causal prefill of the text."""
    model, prompt = random_model(seed), random_prompt(seed, 6)
    strategy = build("wedlm", **settings)
    strategy = replace(strategy, view=view) if view else strategy
    canvas = prepare(model, prompt, strategy, LENGTHS | ONE | {"eos": "suppress"})
    for step in stream(canvas):
        x = step.x.clone()
        if len(canvas.live):
            last = step.window.start + int(step.candidates[0].int().argmax())
            cache = canvas.cache.pick(torch.tensor([0]))
    S, mine = x.shape[1], canvas.model.new_cache(1, x.shape[1])
    model(x, Pass(slice(0, S), slice(0, S), torch.ones(S, S).tril().bool()), mine)
    return cache, last, mine


@given(seeds, st.sampled_from([0.4, 1.5]))
def test_what_has_left_the_window_is_as_a_causal_prefill_computes_it(seed, threshold):
    """Would catch a token that leaves in the forward that writes it, and an order in which a mask comes before what is written."""
    cache, left, causal = caches(seed, **SETTINGS | {"threshold": threshold})
    assert left > 8
    for mine, theirs in ((cache.k, causal.k), (cache.v, causal.v)):
        torch.testing.assert_close(mine[..., :left, :], theirs[..., :left, :], rtol=1e-4, atol=1e-4)


def test_what_leaves_in_the_forward_that_writes_it_is_not():
    """Negative control for the test above: keys and values of a token are those of the mask in its place. A view that takes the first
    mask for the first slot to compute."""

    view = in_order()

    @has(settled=0, inside=view)
    def early(s, window: Window) -> Pass:
        at = view(s, window)
        first = (s.x[s.live, : window.end] == s.mask_id).int().argmax(-1, keepdim=True)
        return at if s.nfe == 0 else at._replace(own=at.own & (torch.arange(at.query.start, at.query.stop) >= first))

    differ = 0
    for seed in range(6):
        cache, left, causal = caches(seed, early, **SETTINGS)
        differ += not torch.allclose(cache.k[-1][..., :left, :], causal.k[-1][..., :left, :], atol=1e-3)
    assert differ == 6


@given(seeds, st.sampled_from([0.4, 1.5]))
def test_the_cache_is_exact(seed, threshold):
    """Would catch a slot that is kept before it is final: everything recomputed gives the same, in a padded batch of two."""
    prompts, strategy = [random_prompt(seed, 9), random_prompt(seed + 1, 4)], build("wedlm", **SETTINGS | {"threshold": threshold})
    cached, uncached = (run(seed, each, *prompts, **ONE) for each in (strategy, replace(strategy, view=in_order(cached=False))))
    assert same(cached, uncached) and cached.rows < uncached.rows


def test_a_mask_sees_what_is_written_to_its_right_and_no_mask_there():
    """Would catch plain causal order, which keeps the cache exact, too, and loses just that."""
    seen = 0
    for seed in range(4):
        for step in decode(random_model(seed), random_prompt(seed, 5), "wedlm", **SETTINGS, **LENGTHS | ONE):
            x = step.x[0].masked_fill(torch.zeros(29).bool(), 0).clone()
            x[step.window.start : step.window.end][step.commit[0]] = MASK  # as it was
            query, mask = step.at.query, step.at.mask[0, 0]
            for row, slot in enumerate(range(query.start, query.stop)):
                written = [j for j in range(slot + 1, step.window.end) if x[j] != MASK]
                masks = [j for j in range(slot + 1, step.window.end) if x[j] == MASK]
                if x[slot] == MASK:
                    assert mask[row, written].all() and not mask[row, masks].any() and mask[row, : slot + 1].all()
                    seen += len(written)
                else:
                    assert not mask[row, slot + 1 :].any()
    assert seen > 20


def test_a_window_of_one_writes_from_left_to_right():
    """Would catch a window that is too wide by one: a token a forward, the first mask each time."""
    for seed in range(3):
        result = run(seed, "wedlm", window=1, eos="fill", **ONE)
        assert result.written[0, result.prompt_length :].tolist() == list(range(1, 25))


def test_a_penalty_beyond_all_entropies_writes_from_left_to_right():
    """Would catch a distance that is measured from another place than the first mask."""
    for seed in range(3):
        result = run(seed, "wedlm", penalty=1e4, threshold=1e-9, eos="fill", **ONE)
        assert result.written[0, result.prompt_length :].tolist() == list(range(1, 25))
    free = [run(seed, "wedlm", penalty=0.0, threshold=1e-9, eos="fill", **ONE) for seed in range(6)]
    assert sum(r.written[0, r.prompt_length :].tolist() != list(range(1, 25)) for r in free) >= 4


def test_the_rule_by_hand():
    """Would catch an entropy that is compared with the wrong sign, and a row that is not moved: two rows of four cells."""
    entropy = torch.tensor([[0.9, 0.1, 0.38, 0.2], [0.9, 0.8, 0.7, 0.71]]).view(-1, 1)
    masked = torch.tensor([[False, True, True, True], [True, True, False, True]]).view(-1, 1)
    scores = Scores(torch.zeros(8, 1, dtype=torch.int64), entropy, lambda name: {"entropy": entropy}[name])
    window = Window(0, 4, None, 0, 0, None, torch.zeros(2, 4, dtype=torch.bool), torch.tensor([0, 1]), torch.tensor([0, 0]))
    written = (clear(0.4, 0.05)(scores, masked, window) & masked).view(2, 4).tolist()
    assert written == [
        [False, True, False, True],
        [False, True, False, False],
    ]  # 0.38 + 0.05 is too much; 0.8 + 0.05 is less than 0.71 + 0.15


def test_nothing_is_computed_behind_an_end():
    """Would catch a window that slides on over padding."""
    ended = 0
    for seed in range(12):
        for step in decode(random_model(seed), random_prompt(seed, 5), "wedlm", **SETTINGS, **LENGTHS | ONE):
            pass
        answer = step.x[0, 5:].tolist()
        if EOS in answer[:12]:
            ended += 1
            assert set(answer[answer.index(EOS) :]) == {EOS}
    assert ended >= 1 and len({tuple(answers(run(seed, "wedlm", **ONE))[0]) for seed in range(5)}) >= 4


def test_a_wrong_setting_is_named():
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "wedlm", "window is 0, expected at least 1", window=0)
    refused(random_model(0), "wedlm", "block_length is 8, expected 1", block_length=8)
