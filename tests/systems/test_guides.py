"""A second model that judges from left to right, against the algorithms written out with loops and without a cache."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import EOS, MASK, VOCABULARY, random_model, random_prompt
from dllm import decode, generate
from lab.oracle import Memory
from model import LLaDA, Pass
from shared import LENGTHS, answers, rules, run, same, seeds
from strategies import STRATEGIES, Strategy, build
from strategies.fast_dllm import cached, threshold_rule
from strategies.guides import Reader, frontier, left_to_right, trailing
from strategies.llada import full, serial

ONE = {"block_length": 1}


def apd(guide, share: float = 0.7, recompute: int | None = 16, lookahead: int = 100) -> Strategy:
    return left_to_right(Reader(guide, share, 1, correct=False), recompute, lookahead)


def guided(guide, top: int = 5, recompute: int | None = 0, lookahead: int = 32) -> Strategy:
    return left_to_right(Reader(guide, 0.0, top, correct=True), recompute, lookahead)


class Bigram:
    """A model of the next token that looks at one token, and a `Drafter` that guesses what it will say."""

    config, device, dtype = random_model(0).config, torch.device("cpu"), torch.float32

    def __init__(self, seed: int):
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
        self.table[:, MASK] = -9.0

    def new_cache(self, batch: int, slots: int):
        return SimpleNamespace(keep=lambda rows: None)

    def __call__(self, ids, at, cache=None, start=None):
        return self.table[ids[:, at.rows]]  # [b, R, V]


class Drafter(Bigram):
    """A model of masks that chains the bigrams from the last token it sees, and errs at some positions."""

    indices = LLaDA.indices

    def __init__(self, seed: int, error: float):
        super().__init__(seed)
        self.noise = torch.randn(64, VOCABULARY, generator=torch.Generator().manual_seed(seed + 1)) * error

    def new_cache(self, batch: int, slots: int) -> Memory:
        return Memory(batch, slots, MASK)

    def __call__(self, ids, at, cache=None, start=None, added=None):
        query, own = self.indices(at.query), at.own
        cache = cache or Memory(len(ids), int(query[-1]) + 1, MASK)
        tokens = cache.tokens[0]  # of the one layer
        tokens[:, query] = ids if own is None else torch.where(own, ids, tokens[:, query])
        last, said = tokens[:, 0], []
        for position, token in enumerate(tokens.T):
            said.append(self.table[last] + self.noise[position])
            last = torch.where(token == MASK, said[-1].argmax(-1), token)
        return torch.stack(said, 1)[:, query[at.rows]]


def pair(seed: int, error: float = 1.0, **settings):
    """Decode by a drafter whose drafts a bigram guide mostly accepts; (Result, the guide)."""
    settings = {"share": 0.0, "top": 1, "correct": True, "recompute": 0, "lookahead": 32} | settings
    common = {"eos": settings.pop("eos", "stop"), "gen_length": 32}
    guide = Bigram(seed)
    recompute, lookahead = settings.pop("recompute"), settings.pop("lookahead")
    mine = left_to_right(Reader(guide, **settings), recompute, lookahead)
    return generate(Drafter(seed, error), random_prompt(seed, 6), mine, **common), guide


def alone(guide: Bigram, prompt: list[int], length: int) -> list[int]:
    """What a bigram writes greedily, to its EOS and with EOS behind it."""
    text = list(prompt)
    while len(text) < len(prompt) + length:
        text.append(EOS if EOS in text[len(prompt) :] else int(guide.table[text[-1]].argmax()))
    return text


def written_out(model, guide, prompt, share, top, correct, lookahead, length) -> list[int]:
    """Draft all masks that are seen, read the draft, keep its accepted run; every forward from nothing."""
    text = list(prompt)
    while len(text) < len(prompt) + length:
        masks = min(lookahead, len(prompt) + length - len(text))
        z = model(torch.tensor([text + [MASK] * masks]))[0, len(text) :]
        z[:, MASK] = -torch.inf
        draft = z.argmax(-1).tolist()
        Q = len(text) + masks - 1
        causal = torch.ones(Q, Q, dtype=torch.bool).tril()
        told = guide(torch.tensor([text + draft[:-1]]), Pass(mask=causal))[0, len(text) - 1 :]
        target = (share * z + (1 - share) * told).nan_to_num(nan=-torch.inf)
        target[:, MASK] = -torch.inf
        for j in range(masks):
            if (target[j] > target[j, draft[j]]).sum() < top or (j == 0 and not correct):
                text.append(draft[j])
                continue
            text += [int(target[j].argmax())] * correct
            break
    return text


@given(
    seeds, st.sampled_from([("apd", 0.0), ("apd", 0.5), ("apd", 0.9), ("guided", 1), ("guided", 5), ("guided", 20)]),
    st.sampled_from([1, 5, 100]),
)  # fmt: skip
def test_they_are_their_algorithms_written_out(seed, case, lookahead):
    """Would catch logits of a neighbour, keys of a rejected token that are kept, masks seen beyond the look-ahead, a wrong mixture."""
    (name, value), prompt = case, random_prompt(seed, 6)
    share, top, correct = (value, 1, False) if name == "apd" else (0.0, value, True)
    model, guide = random_model(seed), random_model(seed + 1)
    expected = written_out(model, guide, prompt, share, top, correct, lookahead, 24)
    for recompute in (None, 100):
        mine = (apd if name == "apd" else guided)(guide, value, recompute, lookahead)
        result = run(seed, mine, prompt, eos="fill", **ONE)
        assert result.tokens[0].tolist() == expected


@given(seeds, st.sampled_from([0, 2, None]), st.sampled_from([3, 32]))
def test_strictly_guided_is_the_guide_alone(seed, recompute, lookahead):
    """Would catch any token that the guide would not have written. The model's cache changes forwards, and no token."""
    guide, prompt = random_model(seed + 1), random_prompt(seed, 6)
    alone = generate(guide, prompt, "ar", gen_length=24)
    drafted = run(seed, guided(guide, 1, recompute, lookahead), prompt, **ONE)
    assert drafted.tokens.equal(alone.tokens) and drafted.lengths == alone.lengths


@given(seeds, st.sampled_from([0, None]))
def test_a_guide_that_accepts_much_is_still_the_guide_alone(seed, recompute):
    """Would catch what the test above cannot, with unrelated models that accept next to nothing: an error behind an accepted token."""
    result, guide = pair(seed, recompute=recompute)
    assert result.tokens[0].tolist() == alone(guide, random_prompt(seed, 6), 32)


def test_that_guide_does_accept_much():
    """Negative control for the test above: accepted in long runs, sometimes corrected; and what the others do differs from the guide."""
    results = [pair(seed, eos="fill") for seed in range(8)]
    assert all(4 <= result.nfe <= 40 for result, _ in results) and sum(result.nfe > 8 for result, _ in results) >= 4
    loose, apd = ([pair(seed, eos="fill", **s)[0] for seed in range(8)] for s in ({"top": 5}, {"share": 0.0, "correct": False}))
    for others in (loose, apd):
        assert sum(not a.tokens.equal(b.tokens) for (a, _), b in zip(results, others)) >= 4
    assert all(len(set(answers(result)[0])) >= 5 for result, _ in results)


@given(seeds)
def test_apd_with_no_share_of_its_own_keeps_only_its_first_tokens_against_the_guide(seed):
    """Would catch a first token that is not the model's, and others that are not the guide's."""
    prompt, guide = random_prompt(seed, 6), Bigram(seed)
    mine = left_to_right(Reader(guide, 0.0, 1, correct=False), 4, 32)
    longest = 0
    for step in decode(Drafter(seed, 1.0), prompt, mine, gen_length=32, eos="fill"):
        cells = step.commit[0].nonzero()[:, 0]
        slots = (cells + step.window.start).tolist()
        assert slots == list(range(slots[0], slots[0] + len(slots))) and step.window.must[0, cells[0]]
        assert step.token[0, cells[0]] == step.logits[0, cells[0]].argmax()
        assert all(step.x[0, slot] == guide.table[step.x[0, slot - 1]].argmax() for slot in slots[1:])
        longest = max(longest, len(slots))
    assert longest >= 3


@given(seeds, st.sampled_from([1, 5, 24]), st.sampled_from([0.0, 0.7]), st.sampled_from([0, 16, None]))
def test_who_accepts_everything_writes_the_look_ahead_in_each_step(seed, lookahead, temperature, recompute):
    """Would catch an acceptance under other noise than the draft's, a run that is cut, and a step that writes beyond its look-ahead."""
    guide, common = random_model(seed + 1), {"temperature": temperature, "eos": "fill", **ONE}
    sure, loose = (
        run(seed, mine, **common) for mine in (apd(guide, 1.0, recompute, lookahead), guided(guide, VOCABULARY, recompute, lookahead))
    )
    assert same(sure, loose) and sure.nfe == 2 * -(-24 // lookahead)


@given(seeds)
def test_a_look_ahead_of_one_writes_one_token_a_step(seed):
    """Would catch a row whose first token is not always accepted."""
    assert run(seed, apd(random_model(seed + 1), lookahead=1), eos="fill", **ONE).nfe == 48


@given(seeds, st.sampled_from([0, 1, 5]))
def test_one_layer_makes_the_trailing_cache_exact(seed, recompute):
    """Would catch a written token whose keys and values stay those of its mask: in the first layer nothing else can go stale."""
    guide = random_model(seed + 1)
    assert same(*(run(seed, apd(guide, 0.8, each, 8), layers=1, **ONE) for each in (recompute, None)))


def test_they_differ_where_they_approximate():
    """Negative controls: the cache of APD goes stale, a wider mixture or a shorter look-ahead writes something else."""

    guide = random_model(9)

    def changed(one: dict, other: dict) -> int:
        runs = [[run(seed, apd(guide, **own), eos="fill", **ONE).tokens for seed in range(5)] for own in (one, other)]
        return sum(not a.equal(b) for a, b in zip(*runs))

    assert changed({"recompute": 0}, {"recompute": None}) >= 3
    assert changed({"share": 0.9}, {"share": 0.5}) >= 3
    assert changed({"lookahead": 4}, {}) >= 3


def test_rows_count_both_models():
    """Would catch a guide that is free, or that reads its prompt anew: prompt 6, one token a step, then look-ahead and what is new."""
    mine = apd(random_model(1), lookahead=4, recompute=2, share=0.0)
    steps = list(decode(random_model(0), random_prompt(0, 6), mine, eos="fill", **LENGTHS | ONE))
    first, second = steps[:2]
    wrote = int(first.commit.sum())
    assert first.rows == (6 + 4) + (6 + 4 - 1) and second.rows == (2 + wrote + 4) + 4
    assert [step.nfe for step in steps] == list(range(2, 2 * len(steps) + 1, 2)) and all(step.ran.tolist() == [2] for step in steps)


def test_a_rule_may_draft_less():
    """Would catch a guide that judges what was not drafted: with a threshold, the run ends at an unsure token, which is the guide's."""
    for seed in range(8):
        guide = Reader(random_model(seed + 1), 0.0, VOCABULARY, correct=True)
        mine = Strategy(threshold_rule(0.5), trailing(0), frontier(8), choose=guide, block_length=1, fixed=True)
        for step in decode(random_model(seed), random_prompt(seed, 6), mine, gen_length=24):
            drafted = step.candidates & ((step.scores.confidence >= 0.5) | step.window.must)
            run = int(drafted[0].int().cumprod(-1).sum())
            assert int(step.commit.sum()) == min(run + 1, int(step.candidates.sum()))


def test_what_makes_no_sense_is_refused():
    """Would catch a guide of other tokens, none at all, one that cannot read so far, and blocks of several tokens."""
    model, other = random_model(0), random_model(1, max_sequence_length=20)
    stranger = random_model(1)
    stranger.config = SimpleNamespace(**vars(stranger.config) | {"vocab_size": 50})
    for mine, settings, message in [
        (guided(None), {}, "a guide is needed: a model of the next token, of the same vocabulary"),
        (guided(other), {}, "prompt and answer is 27, expected at most the guide's 20 tokens"),
        (guided(model), {"block_length": 8}, "block_length is 8, expected 1"),
        (guided(stranger), {}, "the guide's vocab_size is 50, expected 40 as in the model it guides"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode(model, [1, 2, 3], mine, **{"gen_length": 24} | settings)


def test_what_cannot_be_combined_is_refused():
    """Would catch parts that run without one another, and are wrong."""
    guide, rule = Reader(random_model(0), 0.0, 1, True), threshold_rule(0.0)
    whole = {"block_length": 1, "fixed": True}
    Strategy(rule, trailing(0), frontier(4), choose=guide, **whole), Strategy(rule, full, frontier(4), choose=guide, **whole)  # the control
    for view, schedule, choose, own in (
        (full, serial, guide, whole), (full, frontier(4), None, whole), (trailing(0), serial, None, whole),
        (trailing(0), frontier(4), guide, {"block_length": 1}), (trailing(0), frontier(4), guide, {"fixed": True}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="a guide needs the frontier, and that, like the trailing view, a guide"):
            Strategy(rule, view, schedule, **own | ({"choose": choose} if choose else {}))
    with pytest.raises(ValueError, match="pipelined blocks need a view that never asks"):
        Strategy(rule, cached("dual"), frontier(4), choose=guide, **whole)
    for forward in [build(name).forward for name in ("credit", "freedave") if name in STRATEGIES]:
        with pytest.raises(ValueError, match="needs one block at a time"):
            Strategy(rule, full, frontier(4), choose=guide, forward=forward, **whole)
    for revising in rules("saber", "editing").values():
        with pytest.raises(ValueError, match="needs one block at a time"):
            Strategy(revising, full, frontier(4), choose=guide, **whole)
