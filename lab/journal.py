"""A file of JSON lines that is only ever added to: answers of `--prompts`, runs of `compare --out`.

What was added is on the disk before the next is made. A run that was stopped goes on where it was,
and cuts off a torn last line; a line that was made by other settings, another model or another
version of a rule is refused, and so is a file that another run writes to. Under torchrun all
processes add to one file, which the first of them has begun.
"""

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from dllm import Settings
from lab import parallel
from lab.files import append, check_place, json_object, locked, read_bytes
from strategies import STRATEGIES, options


class Journal:
    """Close it, or use it in `with`, so that others may write. ValueError if it is in use."""

    def __init__(self, path: str, of: str = "answer", flag: str = "--out"):
        check_place(flag, path)
        self.path, self.held, self.of, self.name = Path(path), ExitStack(), of, f"{flag} {path}"
        self.whole: int | None = None  # bytes of it to keep; None if it is not there
        if self.path.exists() and parallel.rank() == 0:
            self.held.enter_context(locked(self.path))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.held.close()

    def read(self, keys: tuple[str, ...]) -> list[dict]:
        """Its whole lines, which have an id and these keys; ValueError if one has not."""
        if not self.path.exists():
            return []
        data = read_bytes(self.path)
        self.whole = data.rfind(b"\n") + 1
        found = [json_object(line) for line in data[: self.whole].splitlines()]
        for number, line in enumerate(found, start=1):
            named = line is not None and type(line.get("id")) in (str, int)
            if not named or not all(key in line for key in keys):
                raise self.wrong(number)
        return found

    def wrong(self, number: int) -> ValueError:
        what = f"{self.name}: line {number} is no {self.of} of this program"
        return ValueError(f"{what}; give another file")

    def check_maker(self, number: int, line: dict, made_by: dict) -> None:
        """Refuse a line that was made by anything else than this run is; `settings` by each."""
        flat = lambda made: made | made["settings"]
        try:
            was = flat({name: line[name] for name in made_by})
        except (KeyError, TypeError):
            raise self.wrong(number) from None
        for name, value in flat(made_by).items():
            if name != "settings" and was.get(name) != value:
                begun = f"{self.name} was begun with {name} {was.get(name)!r:.60}"
                raise ValueError(f"{begun}, this is {value!r}: give the same, or another file")

    def begin(self) -> None:
        """Cut it off behind the whole lines, or make it; all processes wait until it is there."""
        try:
            if parallel.rank() == 0:
                if self.whole is None:
                    self.path.touch()
                    self.held.enter_context(locked(self.path))
                    if self.path.stat().st_size:
                        just = f"{self.name}: another run has begun it just now"
                        raise ValueError(f"{just}; start again")
                os.truncate(self.path, self.whole or 0)
            parallel.gathered(None)
            self.file = self.held.enter_context(open(self.path, "ab", buffering=0))
        except OSError as error:
            raise self.unwritable(error) from None

    def add(self, lines: list[dict]) -> None:
        """Append them, all or none."""
        try:
            append(self.file, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self.unwritable(error) from None

    def unwritable(self, error: OSError) -> ValueError:
        return ValueError(f"{self.name} cannot be written: {error.strerror}")


def resolved(strategy: str, given: dict, chosen: Settings) -> dict:
    """All settings, defaults too, and of a rule of one's own a hash of its file."""
    declared = options(STRATEGIES[strategy]).items()
    own = {name: given.get(name, option.default) for name, option in declared}
    return {"rule_hash": hash_of(strategy), "settings": own | asdict(chosen)}


def hash_of(name: str) -> str | None:
    """A hash of the file that FILE.py:NAME names; None for other names."""
    file = name.rpartition(":")[0]
    return hashlib.sha256(read_bytes(file)).hexdigest() if file.endswith(".py") else None
