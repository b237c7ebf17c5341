"""A strategy of your own: FILE.py:NAME is a rule of that file, or what builds one.

A builder is a function, or a class, all of whose arguments have defaults: these are its settings,
declared as in strategies/. It gives back a rule, which then takes every cache, or a Strategy with
a view, a schedule and whatever else of its own. The file is run.
"""

import inspect
import runpy
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import Parameter
from os.path import isfile

from checks import TAKES, require
from strategies import STRATEGIES, Strategy, named

FILES: set[str] = set()  # that were run


def register(name: str) -> None:
    """Enter what FILE.py:NAME names into STRATEGIES under this name; other names are left alone.
    Raises ValueError if there is no such file, rule or builder, or if the file fails."""
    if name not in STRATEGIES and name.endswith(".py") and isfile(name):
        raise ValueError(f"{name} is a file: name the rule, or its builder, as in {name}:rule")
    if name in STRATEGIES or not name.rpartition(":")[0].endswith(".py"):
        return
    found = function_of(name)
    with in_one_line(f"{name} is no strategy"):
        named(name)(builder_of(name, found))


def function_of(name: str) -> Callable:
    """What FILE.py:NAME names; ValueError if there is none, or if the file fails."""
    file, _, function = name.rpartition(":")
    if not isfile(file):
        raise ValueError(f"there is no file {file}")
    FILES.add(file)
    with in_one_line(f"{file} does not run"):
        found = runpy.run_path(file).get(function)
    if not callable(found):
        raise ValueError(f"{file} defines no function {function!r}")
    return found


def settings_of(found: Callable) -> list[Parameter] | None:
    """The settings of a builder; None for a rule."""
    signature = inspect.signature(found, eval_str=True)
    own = list(signature.parameters.values())
    if all(p.default is not p.empty for p in own):
        return [p.replace(kind=Parameter.KEYWORD_ONLY) for p in own]
    with suppress(TypeError):
        signature.bind(*TAKES["rule"].split(","))
        if not isinstance(found, type):
            return None
    rule = f"a rule takes ({TAKES['rule']})"
    raise ValueError(f"it takes {signature}: {rule}, a builder settings, each with a default")


def builder_of(name: str, found: Callable) -> Callable[..., Strategy]:
    """A builder like those in strategies/: one of rules has the setting `cache`, too."""
    from strategies.fast_dllm import CacheSetting, cached  # systems, whose files may be missing
    from strategies.llada import serial

    own = settings_of(found)
    make = (lambda: found) if own is None else found
    parameters = {parameter.name: parameter for parameter in own or ()}
    made = None
    with suppress(ValueError):  # of settings that have no good default: those given may be
        made = make()
    takes_cache = "cache" not in parameters and not isinstance(made, Strategy)

    def builder(**given) -> Strategy:
        cache = given.pop("cache", "prefix") if takes_cache else "prefix"
        made = make(**given)
        made = Strategy(made, cached(cache), serial) if callable(made) else made
        valid = "a rule or a Strategy"
        require(isinstance(made, Strategy), f"what {name} gives back", made, valid)
        return made

    if takes_cache:
        how = {"default": "prefix", "annotation": CacheSetting}
        parameters["cache"] = Parameter("cache", Parameter.KEYWORD_ONLY, **how)
    builder.__signature__ = inspect.Signature(list(parameters.values()))
    builder.__doc__ = inspect.getdoc(found)
    return builder


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Whatever a file of one's own raises in these lines is a ValueError of one line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{what}: {kind}{' '.join(str(error).split())}") from None


@contextmanager
def faults() -> Iterator[None]:
    """An error in a file of one's own ends the program, with a traceback that begins there."""
    try:
        yield
    except Exception as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename not in FILES:
            trace = trace.tb_next
        if trace is None:
            raise
        text = "".join(traceback.format_exception(type(error), error, trace))
        raise SystemExit(text.rstrip()) from None
