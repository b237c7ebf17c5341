"""Settings as the functions that take them declare them, and the checks of what a caller hands in: all of them before any work.

A builder's keyword arguments are its settings; the command line, the checks and the tables of the docs are made from its signature and docstring.
"""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import NamedTuple, Union, get_args, get_origin

import torch
from torch import Tensor

from model import Config, LLaDA


class Option(NamedTuple):
    """A setting as its function declares it: the command line, the checks and the strategy table are all made from these."""

    name: str
    kind: type  # int, float, bool, str or, for a second model, LLaDA
    choices: tuple  # of a Literal, else empty
    optional: bool  # None is a value, too
    default: object
    meaning: str

    def read(self, text: str):
        """The value that a text stands for; ValueError if it is of another type."""
        if text == "none" and self.optional:
            return None
        if self.kind is LLaDA:
            return text  # where it is, for the caller to load
        return text == "true" if self.kind is bool and text in ("true", "false") else self.kind(text)


@functools.cache
def options(function: Callable) -> dict[str, Option]:
    """The keyword arguments of a builder or of a dataclass, with their meanings from its docstring and those of its bases."""
    # without the indentation, which compilers from 3.13 on have stripped already
    documented = "\n".join(inspect.cleandoc(each.__doc__) for each in getattr(function, "__mro__", [function]))
    meanings = dict(re.findall(r"^(\w+): (.+)$", documented, re.MULTILINE))
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        choices = get_args(parts[0])
        found[name] = Option(name, str if choices else parts[0], choices, NoneType in parts, parameter.default, meanings[name])
    return found


def require(holds: bool, name: str, value, valid: str) -> None:
    if not holds:  # also for NaN, which compares false with everything
        raise ValueError(f"{name} is {value!r}, expected {valid}")


def check_kinds(function: Callable, given: dict) -> None:
    """Refuse values of another type than the function declares, or outside its choices."""
    for name, value in given.items():
        option = options(function)[name]
        if value is None and option.optional:
            continue
        if option.choices:
            require(value in option.choices, name, value, "one of " + ", ".join(option.choices))
        right = isinstance(value, (int, float) if option.kind is float else option.kind)
        require(right and isinstance(value, bool) == (option.kind is bool), name, value, f"a value of type {option.kind.__name__}")


AT_LEAST_ONE = (
    "n", "refresh", "width", "depth", "kernel_size", "prompt_interval_steps", "gen_interval_steps", "lookahead", "top", "k", "survivors",
    "decay", "interval",
)  # fmt: skip
AT_MOST_ONE = (
    "block_add_threshold", "decoded_token_threshold", "confidence_alpha", "beta", "keep_ratio", "transfer_ratio", "share", "search_from",
    "search_to",
)  # fmt: skip


def check_range(name: str, value) -> None:
    """Refuse a negative setting of a strategy, or one beyond what its name allows."""
    if isinstance(value, (int, float)):
        low, high = (1 if name in AT_LEAST_ONE else 0), (1 if name in AT_MOST_ONE else torch.inf)
        require(low <= value <= high, name, value, f"at least {low}" if high > 1 else "between 0 and 1")


def nearest_multiple(value: int, of: int) -> int:
    return max(1, round(value / of)) * of


def check_prompt(prompt, config: Config, gen_length: int) -> list[list[int]]:
    """One prompt or several, as a tensor or as lists, to a list of lists of ids that fit the model."""
    rows = check_ids(prompt, "prompt", config)
    for which, row in rows.items():
        if config.mask_token_id in row:
            raise ValueError(f"{which} holds the mask token, id {config.mask_token_id}, which marks what is to be written")
        if len(row) + gen_length > config.max_sequence_length:
            raise ValueError(
                f"{which} has {len(row)} tokens, gen_length is {gen_length}: together more than the model's {config.max_sequence_length}"
            )
    return list(rows.values())


def check_template(template, config: Config) -> list[list[int]]:
    """The same of templates, each of which must have a hole; none if there is none."""
    rows = check_ids(template, "template", config) if template is not None else {}
    for which, row in rows.items():
        if config.mask_token_id not in row:
            raise ValueError(f"{which} has no hole: the mask token, id {config.mask_token_id}, marks what is to be written")
    return list(rows.values())


def check_ids(ids, name: str, config: Config) -> dict[str, list[int]]:
    """One row of token ids or several, each under what messages call it."""
    rows = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    if not rows or not isinstance(rows[0], Sequence):
        rows = [rows]
    named_rows = {f"{name} {number}" if len(rows) > 1 else f"the {name}": list(row) for number, row in enumerate(rows)}
    for which, row in named_rows.items():
        if not row:
            raise ValueError(f"{which} is empty: give at least one token")
        if outside := [token for token in row if not (isinstance(token, int) and 0 <= token < config.vocab_size)]:
            raise ValueError(f"{which} holds the id {outside[0]}, but the vocabulary ends at {config.vocab_size - 1}")
    return named_rows
