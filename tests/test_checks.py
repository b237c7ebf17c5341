"""What callers hand in and parts give back: whatever cannot be right is one sentence, whatever can is taken."""

from functools import partial

import pytest
import torch

from checks import brief
from conftest import random_model
from dllm import StepLimit, decode, generate, plan
from lab.oracle import Oracle
from model import Pass
from shared import LENGTHS, refused, same
from strategies import MASKED, Strategy, has
from strategies.fast_dllm import cached, threshold_rule
from strategies.llada import full, quota, serial

SURE = threshold_rule(0.5)


def says(message: str, **arguments) -> None:
    """Assert that a decode, or the making of its strategy, ends in this one sentence."""
    strategy = arguments.pop("strategy", None) or partial(Strategy, **{"rule": SURE, "view": full, "schedule": serial} | arguments)
    with pytest.raises(ValueError) as error:
        generate(random_model(0), [[1, 2, 3], [4, 5, 6]], strategy() if callable(strategy) else strategy, **LENGTHS)
    assert message in str(error.value) and "\n" not in str(error.value)


# --- prompts


class Loaded:
    """A stranger's array."""

    def tolist(self):
        return [4, 5, 6]


@pytest.mark.parametrize(
    "form",
    [[torch.tensor([4, 5, 6])], [torch.tensor(4), torch.tensor(5, dtype=torch.uint8), 6], ((4, 5, 6),), range(4, 7), Loaded()],
    ids=lambda form: type(form).__name__,
)
def test_whatever_holds_ids_is_taken(model, form):
    """Would catch a form of prompt that decodes to something else, or is refused for a false reason."""
    assert same(generate(model, form, "fast-dllm", **LENGTHS), generate(model, [4, 5, 6], "fast-dllm", **LENGTHS))


def test_arrays_of_numpy_are_taken(model):
    """Would catch the reason that a prompt of numpy got: an id out of the vocabulary."""
    numpy = pytest.importorskip("numpy")
    ids = numpy.array([4, 5, 6])
    forms = [ids, ids[None].astype("int32"), [ids], [ids[0], ids[1], ids[2]], [4, 5, 6]]
    assert same(*(generate(model, form, "fast-dllm", **LENGTHS) for form in forms))


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("What is 2 + 2?", "prompt is text: encode it first"),
        (b"abc", "prompt is text: encode it first"),
        (["one", "two"], "prompt holds text, 'one': encode it first"),
        ([["one"]], "the prompt holds 'one', which is no token id"),
        ({"input_ids": [[1, 2]]}, "prompt is a mapping: give its token ids alone"),
        ([{"role": "user"}], "the prompt holds {'role': 'user'}, which is no token id"),
        (None, "prompt is None, expected token ids: a list, a list of lists, or a tensor"),
        (5, "prompt is 5, expected token ids"),
        (print, "prompt is <built-in function print>"),
        (torch.tensor(5), "prompt is a tensor int64 [], expected token ids"),
        (torch.Tensor, "prompt is <class 'torch.Tensor'>, expected token ids"),
        (torch.zeros(1, 3, dtype=torch.int64, device="meta"), "prompt is a tensor int64 [1, 3], expected token ids"),
        ({1, 2}, "prompt is {1, 2}, expected token ids"),
        ([1, [2, 3]], "prompt holds both ids and lists of ids"),
        ([[1, 2], 3], "prompt holds both ids and lists of ids"),
        ([[1], None], "prompt holds both ids and lists of ids"),
        ([[[1, 2]]], "the prompt holds [1, 2], which is no token id"),
        (torch.ones(2, 2, 2, dtype=torch.int64), "prompt 0 holds [1, 1], which is no token id"),
        (torch.ones(1, 3), "the prompt holds 1.0, which is no token id"),
        ([True, False], "the prompt holds True, which is no token id"),
        ([1, None], "the prompt holds None, which is no token id"),
        ([1, -1], "the prompt holds the id -1, but the vocabulary ends at 39"),
        ([10**5000], "the prompt holds the id a number of thousands of digits, but the vocabulary ends at 39"),
        (torch.zeros(2, 0, dtype=torch.int64), "prompt 0 is empty: give at least one token"),
        (torch.zeros(0, 3, dtype=torch.int64), "the prompt is empty: give at least one token"),
    ],
    ids=lambda value: brief(value)[:40],
)
def test_a_prompt_of_another_type_is_told_what_it_is(model, prompt, message):
    """Would catch a TypeError, and a false reason: text was said to hold an id that is out of the vocabulary."""
    refused(model, "llada", message, prompt=prompt)
    holes = {"template": prompt, "prompt": [1], "gen_length": 24}
    if prompt is not None:
        refused(model, "llada", message.replace("prompt", "template"), **holes)


def test_a_list_that_holds_itself_is_refused(model):
    """Would catch a reader of nested lists that never ends."""
    endless: list = []
    endless.append(endless)
    refused(model, "llada", "which is no token id", prompt=endless)


# --- strategies, settings and models by other names


@pytest.mark.parametrize(
    "strategy, message",
    [
        (None, "strategy is None, expected a name, or a Strategy"),
        (5, "strategy is 5, expected"),
        ([], "strategy is [], expected"),
        (SURE, "strategy is <function threshold_rule.<locals>.rule at"),
        (Strategy, "strategy is <class 'strategies.Strategy'>, expected"),
        ("", "unknown strategy '': choose one of llada"),
        ("x" * 300, f"unknown strategy '{'x' * 27}...{'x' * 28}': choose one of llada"),
        ("a\n\x1b[2Jb", "unknown strategy 'a\\n\\x1b[2Jb': choose one of llada"),
    ],
    ids=lambda value: brief(value)[:40],
)
def test_what_is_no_strategy_is_refused(model, strategy, message):
    """Would catch an AttributeError, and a message as long or as harmful as the name."""
    refused(model, strategy, message)


@pytest.mark.parametrize("value", [10**400, 10**30, float("inf"), float("nan"), -1, "1", [1], None, 1e300])
@pytest.mark.parametrize(
    "strategy, name", [("llada", "cfg_scale"), ("fast-dllm", "steps"), ("localleap", "radius"), ("streaming", "threshold")]
)
def test_settings_are_numbers_of_a_sane_size(model, strategy, name, value):
    """Would catch an infinity, and a number that overflows in a tensor or makes a decode endless."""
    if (name, value) != ("steps", None):
        refused(model, strategy, f"{name} is ", **{name: value})


def test_what_is_no_model_is_refused():
    """Would catch an AttributeError for a path in the place of the model."""
    for model in ("weights/tiny", None):
        refused(model, "llada", "model is ")
    assert generate(Oracle("permutation-5"), [0], "llada", gen_length=5, block_length=5).nfe == 5  # the control


# --- strategies by hand


class Rule:
    def __init__(self, least=0.5):
        self.least = least

    def __call__(self, scores, candidates, window):
        return scores.confidence >= self.least


@pytest.mark.parametrize(
    "own, message",
    [
        ({"rule": None}, "the rule is None, expected a function of (scores, candidates, window)"),
        ({"rule": torch.ones(3)}, "the rule is a tensor float32 [3], expected a function"),
        ({"rule": Rule}, "the rule is the class Rule: give an object of it"),
        (
            {"rule": threshold_rule},
            "the rule threshold_rule of fast_dllm.py takes (threshold: float | None, strict: bool = False) -> "
            "collections.abc.Callable[[kernels.Scores, torch.Tensor, strategies.Window], 'Tensor | tuple[Tensor, Tensor]'], "
            "not (scores, candidates, window): is it the function that makes it?",
        ),
        ({"view": cached}, "the view cached of fast_dllm.py takes (cache:"),
        ({"view": SURE}, "the view rule of fast_dllm.py takes (scores:"),
        ({"schedule": full}, "the schedule full of llada.py takes (s,"),
        ({"order": "margin"}, "the order is 'margin', expected a function of (scores, generator)"),
        ({"forward": 1}, "the forward is 1, expected a function of (s, window, at)"),
        ({"eos": "never"}, "eos is 'never', expected one of fill, stop, suppress, defer"),
        ({"eos": None}, "eos is None, expected one of fill, stop, suppress, defer"),
        ({"temperature": float("nan")}, "temperature is nan, expected"),
        ({"block_length": 0}, "block_length is 0, expected at least 1"),
        ({"block_length": 8.0}, "block_length is 8.0, expected a value of type int"),
        ({"shift": 2}, "shift is 2, expected between 0 and 1"),
        ({"fixed": "no"}, "fixed is 'no', expected a value of type bool"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_strategy_by_hand_is_checked_when_it_is_made(own, message):
    """Would catch a class or a factory in the place of what it makes, and what surfaces in the middle of a decode."""
    if "threshold_rule" in message:
        message = message[: message.index("(threshold")]
    says(message, **own)


def test_what_can_be_called_is_taken():
    """The control for the test above."""
    for rule in (Rule(), partial(lambda least, *three: three[0].confidence >= least, 0.5), lambda *three: SURE(*three), quota):
        assert plan(Strategy(rule, full, serial), {})[0].rule is rule


def factory(low, high, third):
    return lambda scores, candidates, window: scores.confidence >= low


@pytest.mark.parametrize(
    "rule, got",
    [
        (lambda scores, candidates, window: (scores.confidence >= 0.5)[0], "a tensor bool [8]"),
        (lambda scores, candidates, window: scores.confidence, "a tensor float32 [2, 8]"),
        (lambda scores, candidates, window: (scores.confidence >= 0.5).tolist(), "[["),
        (lambda scores, candidates, window: None, "None"),
        (factory, "<function factory.<locals>.<lambda>"),
        (lambda scores, candidates, window: (candidates, scores.token, 1), "a tensor bool [2, 8] and a tensor int64 [2, 8] and 1"),
        (lambda scores, candidates, window: (candidates, scores.confidence), "a tensor bool [2, 8] and a tensor float32 [2, 8]"),
        (lambda scores, candidates, window: (candidates,), "a tensor bool [2, 8], expected"),
    ],
)
def test_what_a_rule_gives_back_has_a_shape_and_a_type(rule, got):
    """Would catch a rule that looks right alone and corrupts a batch, and a library's error in the place of a sentence."""
    says(f"of test_checks.py gave back {got}", rule=rule)
    says("expected a tensor bool [2, 8], or that and a tensor int64 [2, 8]", rule=rule)


def test_a_rule_writes_token_ids():
    """Would catch an index error of the next forward, and a mask that stands in the answer."""
    for token in (40, 10**9, -2):
        rule = lambda scores, candidates, window, token=token: (candidates, torch.full_like(scores.token, token))
        says("a rule wrote what is no token id", rule=rule)
    back = lambda scores, candidates, window: (candidates, torch.full_like(scores.token, MASKED))
    says("a forward wrote nothing where it must", rule=back)


def test_a_rule_may_change_what_it_is_handed(model):
    """Would catch a rule that takes candidates away from the loop, which then never ends."""

    def changing(scores, candidates, window):
        candidates &= scores.confidence >= 0.5
        return candidates

    def emptying(scores, candidates, window):
        candidates.fill_(False)
        return candidates

    mine = generate(model, [1, 2, 3], Strategy(changing, full, serial), **LENGTHS)
    assert same(mine, generate(model, [1, 2, 3], Strategy(SURE, full, serial), **LENGTHS))
    one = generate(model, [1, 2, 3], Strategy(emptying, full, serial), **LENGTHS)
    assert same(one, generate(model, [1, 2, 3], "llada", **LENGTHS)) and one.nfe == 24


def test_a_rule_that_takes_everything_back_comes_to_an_end(model):
    """Would catch a decode without end. Each forward writes a token, the next one takes it back."""

    @has(revises=True)
    def wavering(scores, candidates, window):
        if window.age % 2:
            return ~candidates, torch.full_like(scores.token, MASKED)
        return candidates & (candidates.cumsum(-1) == 1), scores.token

    with pytest.raises(StepLimit, match="2401 forwards have not filled 24 tokens"):
        generate(model, [1, 2, 3], Strategy(wavering, full, serial), **LENGTHS)


def before(s, window):
    return Pass(slice(0, window.end - 1), slice(0, window.end - 1))


def behind(s, window):
    return Pass(slice(0 if window.age == 0 else window.start + 1, s.x.shape[1]), slice(0, s.x.shape[1]))


@pytest.mark.parametrize(
    "view, message",
    [
        (before, "the view before of test_checks.py does not compute the slots 3 .. 11, where the logits of its window stand"),
        (behind, "the view behind of test_checks.py does not compute the slots 3 .. 11"),
        (lambda s, w: Pass(torch.arange(w.end - 1)), "does not compute the slots 3 .. 11"),
        (lambda s, w: Pass(slice(w.start, w.end)), "does not compute the prompt in the first forward"),
        (lambda s, w: Pass(slice(1, w.end)), "does not compute the prompt in the first forward"),
        (lambda s, w: Pass(slice(0, w.end), slice(0, s.x.shape[1])), "shows slots in the first forward that it does not compute"),
        (lambda s, w: slice(0, s.x.shape[1]), "gave back slice(0, 27, None), expected a Pass"),
        (lambda s, w: Pass(), "gave back the slots None, expected a slice with both ends, or int64 [n], within 0 .. 27"),
        (lambda s, w: Pass(slice(0, 28)), "gave back the slots slice(0, 28, None), expected"),
        (lambda s, w: Pass(slice(0, None)), "gave back the slots slice(0, None, None), expected"),
        (lambda s, w: Pass(slice(-27, 27)), "gave back the slots slice(-27, 27, None), expected"),
        (lambda s, w: Pass(torch.arange(28)), "gave back the slots a tensor int64 [28], expected"),
        (lambda s, w: Pass(torch.arange(27.0)), "gave back the slots a tensor float32 [27], expected"),
    ],
)
def test_a_view_computes_what_is_asked_of_it(view, message):
    """Would catch rows that are off by one, and slots that nothing was ever computed for: garbage, silently."""
    says(message, view=view)


def test_a_shift_needs_the_slot_before_the_block():
    """Would catch a tensor error in the second forward of a cache that leaves out the slot before."""
    for cache in ("prefix", "dual"):
        says("the view view of fast_dllm.py does not compute the slots 2 .. 10", view=cached(cache), shift=1)
    for view in (full, cached("vicinity")):  # the control
        assert generate(random_model(0), [1, 2, 3], Strategy(SURE, view, serial, shift=1), **LENGTHS).nfe


def test_a_schedule_fills_the_canvas():
    """Would catch masks in an answer."""

    def short(s):
        s.opened.fill_(1)
        while s.masked()[:, 0].any():
            yield s.window(0, 1, None, 0, s.masked()[:, :1].any(-1))

    says("the schedule short of test_checks.py ended and left masks", schedule=short)


@pytest.mark.parametrize(
    "own, message",
    [
        ({"schedule": lambda s: threshold_rule}, "what the schedule <lambda> of test_checks.py gives is <function threshold_rule"),
        ({"schedule": lambda s: iter([3])}, "what the schedule <lambda> of test_checks.py opens is 3, expected a Window"),
        ({"search": lambda s, steps: None}, "what the search <lambda> of test_checks.py gives is None, expected an iterator"),
        (
            {"forward": lambda s, window, at: None},
            "what the forward <lambda> of test_checks.py gives is None, expected a tensor [2, 8, 40]",
        ),
        (
            {"forward": lambda s, window, at: s.forward(window, at)[:1]},
            "what the forward <lambda> of test_checks.py gives is a tensor float32 [1, 8, 40], expected a tensor [2, 8, 40]",
        ),
        ({"order": lambda scores, draw: None}, "what the order <lambda> of test_checks.py gives is None, expected a tensor [2, 8]"),
        ({"order": lambda scores, draw: scores.doubt[0]}, "gives is a tensor float32 [8], expected a tensor [2, 8]"),
        (
            {"choose": lambda *six: six[3]},
            "the choose <lambda> of test_checks.py gave back a tensor bool [2, 8], expected a tensor bool [2, 8] and",
        ),
    ],
)
def test_what_other_parts_give_back(own, message):
    """Would catch a library's error in the place of a sentence."""
    says(message, **own)


def test_a_rule_that_changes_its_window_changes_nothing_else(model):
    """Would catch a mask in an answer: the window held the decoder's own list of unfinished rows."""

    def changing(scores, candidates, window):
        window.live.fill_(0)
        return scores.confidence >= 0.5

    prompts = [[1, 2, 3], [4, 5, 6]]
    mine = generate(model, prompts, Strategy(changing, full, serial), **LENGTHS)
    assert same(mine, generate(model, prompts, Strategy(SURE, full, serial), **LENGTHS))


# --- logits


@pytest.mark.parametrize("strategy", ["llada", "fast-dllm", "d2f", "saber", "credit", "freedave"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_noticed_in_the_first_forward(strategy, value):
    """Would catch NaN that threshold rules write last, and a decode that never ends."""
    model = random_model(0)
    with torch.no_grad():
        model.wte.weight[7] = value  # what is not read does no harm
    steps = decode(model, [1, 2, 7], strategy, **LENGTHS)
    with pytest.raises(ValueError, match="the logits are NaN or infinite: try --dtype bfloat16 or float32"):
        next(steps)


def test_nothing_is_compiled_before_all_is_checked(model, monkeypatch):
    """Would catch a minute of compiling for what is refused then."""
    monkeypatch.setattr("dllm.compile_model", None)
    deep = Strategy(SURE, has(fits=lambda s: 1 / 0)(lambda *_: Pass(slice(0, 27))), serial)
    with pytest.raises(ZeroDivisionError):
        generate(model, [1, 2, 3], deep, compile=True, **LENGTHS)
    monkeypatch.setattr("load_weights.free_memory", lambda device: 1e3)
    refused(model, "llada", "but cpu has", compile=True)
