"""What callers hand in and parts give back, where it cannot be right: a sentence for each.

What would have to wait for the device is asked in a decode's first forward alone.
"""

import inspect
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from model import Pass

TAKES = {  # each kind of part; strategies/__init__.py says what it gives back
    "rule": "scores, candidates, window",
    "view": "s, window",
    "schedule": "s",
    "order": "scores, generator",
    "forward": "s, window, at",
    "choose": "s, window, scores, candidates, logits, noise",
    "search": "s, steps",
}
NEEDED = ("rule", "view", "schedule")
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60


def require(holds: bool, name: str, value, valid: str) -> None:
    if not holds:  # also for NaN, which compares false with everything
        raise ValueError(f"{name} is {brief(value)}, expected {valid}")


def brief(value) -> str:
    """A value in a message: short, and in one line."""
    if isinstance(value, Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    try:
        return " ".join(SHORT.repr(value).split())
    except ValueError:  # Python prints no number of more than 4,300 digits
        return "a number of thousands of digits"


# --- token ids ------------------------------------------------------------------------------------


def check_ids(ids, name: str, vocabulary: int) -> dict[str, list[int]]:
    """One row of token ids or several, each under what messages call it."""
    rows = plain(ids)
    if isinstance(rows, (str, bytes)):
        raise ValueError(f"{name} is text: encode it first, tokenizer.encode_chat(...) or .encode")
    if isinstance(rows, Mapping):
        raise ValueError(f"{name} is a mapping: give its token ids alone, without padding")
    valid = "token ids: a list, a list of lists, or a tensor"
    require(isinstance(rows, Sequence), name, ids, valid)
    rows = [plain(row) for row in rows]
    text = [row for row in rows if isinstance(row, (str, bytes))]
    if text:
        raise ValueError(f"{name} holds text, {brief(text[0])}: encode it first")
    nested = [isinstance(row, Sequence) for row in rows]
    if nested and any(nested) != all(nested):
        raise ValueError(f"{name} holds both ids and lists of ids: give one, or the other")
    rows = rows if any(nested) else [rows]
    numbered = {f"{name} {number}": row for number, row in enumerate(rows)}
    numbered = numbered if len(rows) > 1 else {f"the {name}": rows[0]}
    return {which: checked_row(row, which, vocabulary) for which, row in numbered.items()}


def checked_row(row: Sequence, which: str, vocabulary: int) -> list[int]:
    if not row:
        raise ValueError(f"{which} is empty: give at least one token")
    row = [plain(token) for token in row]
    for token in row:
        if not isinstance(token, int) or isinstance(token, bool):
            raise ValueError(f"{which} holds {brief(token)}, which is no token id")
        if not 0 <= token < vocabulary:
            ends = f"the vocabulary ends at {vocabulary - 1}"
            raise ValueError(f"{which} holds the id {brief(token)}, but {ends}")
    return row


def plain(ids):
    """The lists and numbers that a tensor or an array holds; all else as it is."""
    if hasattr(ids, "tolist") and not isinstance(ids, type):
        with suppress(RuntimeError):  # a tensor without data
            return ids.tolist()
    return ids


# --- parts ----------------------------------------------------------------------------------------


def called(kind: str, part) -> str:
    """A part in a message: its name, and the file it is from."""
    function = part if hasattr(part, "__code__") else type(part).__call__
    file = Path(function.__code__.co_filename).name if hasattr(function, "__code__") else "?"
    return f"the {kind} {getattr(part, '__name__', type(part).__name__)} of {file}"


def check_part(kind: str, part) -> None:
    """Refuse a part that cannot be called as the decoder calls it: most often the class or the
    function that makes it, instead of what it makes."""
    if part is None and kind not in NEEDED:
        return
    takes = f"({TAKES[kind]})"
    require(callable(part), f"the {kind}", part, f"a function of {takes}")
    if isinstance(part, type):
        raise ValueError(f"the {kind} is the class {part.__name__}: give an object of it")
    try:
        signature = inspect.signature(part)
    except ValueError:  # a function of C may not say
        return
    try:
        signature.bind(*takes.split(","))
    except TypeError:
        wrong = f"{called(kind, part)} takes {signature}, not {takes}"
        raise ValueError(f"{wrong}: is it the function that makes it?") from None


def check_shape(kind: str, part, given, shape: tuple) -> None:
    """Refuse what a part gave back unless it is a tensor of this shape."""
    right = isinstance(given, Tensor) and given.shape == shape
    require(right, f"what {called(kind, part)} gives", given, f"a tensor {list(shape)}")


def check_iterator(kind: str, part, given) -> None:
    require(isinstance(given, Iterator), f"what {called(kind, part)} gives", given, "an iterator")


def check_choice(kind: str, part, chosen, like: Tensor) -> None:
    """Refuse what a rule, or another way to choose, gave back unless it is one bool for each cell
    of `like`, which to write, or that and one int64 each: with what."""
    both = [brief(each) for each in (chosen if isinstance(chosen, tuple) else (chosen,))]
    wanted = [f"a tensor {kind} {list(like.shape)}" for kind in ("bool", "int64")]
    if both != (wanted if isinstance(chosen, tuple) or kind == "choose" else wanted[:1]):
        valid = f"{wanted[0]}{', or that' if kind == 'rule' else ''} and {wanted[1]}"
        raise ValueError(f"{called(kind, part)} gave back {' and '.join(both)}, expected {valid}")


def check_pass(s, window, at) -> None:
    """Refuse what the view gave back unless it computes the slots whose logits are wanted and, in
    the first forward, the prompt and all that it shows. Only then is a tensor looked into."""
    name, S, shift = called("view", s.strategy.view), s.x.shape[1], s.shift
    if not isinstance(at, Pass):
        raise ValueError(f"{name} gave back {brief(at)}, expected a Pass")
    for slots in (at.query,) if at.visible is None else (at.query, at.visible):
        if not are_slots(slots, S, look=s.nfe == 0):
            valid = f"a slice with both ends, or int64 [n], within 0 .. {S}"
            raise ValueError(f"{name} gave back the slots {brief(slots)}, expected {valid}")
    low, high, query = window.start - shift, window.end - shift, at.query
    low += s.leads and window.age != 0
    if isinstance(query, slice):
        there = query.start <= low and high <= query.stop
    else:
        there = (
            at.own is not None or s.nfe or torch.isin(torch.arange(low, high), query.cpu()).all()
        )
    if not there:
        where = f"the slots {low} .. {high}, where the logits of its window stand"
        raise ValueError(f"{name} does not compute {where}")
    if s.nfe == 0:
        query = s.model.indices(query)
        shown = query if at.visible is None else s.model.indices(at.visible)
        if not torch.isin(s.model.indices(slice(0, s.prompt_length)), query).all():
            raise ValueError(f"{name} does not compute the prompt in the first forward")
        if not torch.isin(shown, query).all():
            raise ValueError(f"{name} shows slots in the first forward that it does not compute")


def are_slots(slots, S: int, look: bool) -> bool:
    if isinstance(slots, Tensor):
        whole = slots.dtype == torch.int64 and slots.dim() == 1 and len(slots) > 0
        return whole and (not look or bool(((slots >= 0) & (slots < S)).all()))
    ends = (slots.start, slots.stop) if isinstance(slots, slice) and slots.step is None else ()
    return len(ends) == 2 and all(type(n) is int for n in ends) and 0 <= ends[0] < ends[1] <= S
