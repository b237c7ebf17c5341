"""What comes from a user and goes to one, in files or as text: one line if that cannot be."""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from math import isfinite
from pathlib import Path

UNFINISHED = ".tmp"  # how the name of a file begins that is being written; safetensors' do, too
# What a terminal obeys instead of showing it: control characters but for a new line and a tab, half
# characters, and what changes the direction of all that follows. Joiners, marks and spaces stay.
COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def check_place(flag: str, path: str, *suffixes: str) -> None:
    """Raise ValueError, naming the flag, if no file can be written there; nothing is created."""
    place, folder = Path(path), Path(path).parent
    if suffixes and place.suffix not in suffixes:
        raise ValueError(f"{flag} {path}: expected a name that ends in {' or '.join(suffixes)}")
    try:
        if place.is_dir():
            raise ValueError(f"{flag} {path}: that is a folder")
        if not folder.is_dir():
            raise ValueError(f"{flag} {path}: there is no folder {folder}")
        if not os.access(place if place.exists() else folder, os.W_OK):
            raise ValueError(f"{flag} {path}: no permission to write there")
    except OSError as error:  # a name that is too long
        raise ValueError(f"{flag} {path}: {error.strerror}") from None


def read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A place to write what is then to stand at `path`: all of it, or what stood there before.

    No other writer has this place, and what a failure leaves there is removed; ValueError if it
    cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{UNFINISHED}-{os.urandom(4).hex()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def append(file: FileIO, line: bytes) -> None:
    """Write a line whole; of one for which there is no room nothing stays."""
    done = 0
    try:
        while done < len(line):  # a disk that gets full takes a part
            done += file.write(line[done:])
    except OSError:
        with suppress(OSError):
            file.truncate(file.tell() - done)
        raise


def sweep(folder: str | Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody else writes to."""
    for left in Path(folder).glob(f"{UNFINISHED}*"):
        left.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keep a file or folder that is there from other runs; ValueError if one of them has it.

    Where there are no such locks (Windows, some network drives) all may write.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ValueError(f"{path} is in use: another run writes to it") from None
    except OSError:  # not there
        pass
    try:
        yield
    finally:
        os.close(file)


def json_object(line: str | bytes) -> dict | None:
    """The object that a line of JSON is; None if it is none. NaN and infinity are no JSON."""
    try:
        found = json.loads(line, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise ValueError(f"{text} is no number of JSON")
    return number


def whole_text(text: str, name: str) -> str:
    """The text; ValueError if it is empty, or holds what was no UTF-8 where it came from."""
    try:
        text.encode("utf-8")
    except UnicodeError:
        raise ValueError(f"the {name} is not valid UTF-8") from None
    if not text.strip():
        raise ValueError(f"the {name} is empty")
    return text


def printable(text: str) -> str:
    """Text as a terminal shows it: what commands the terminal becomes U+FFFD, and CR goes."""
    return COMMANDS.sub("\ufffd", text.replace("\r", ""))


def write(text: str, what: str = "answer") -> None:
    """Print what was asked for; what stdout's encoding lacks becomes a question mark. A reader who
    has had enough (`| head`) ends the program quietly; OSError, in words for the user, if it cannot
    be written (a full disk)."""
    if sys.stdout is None:  # closed, by `>&-`
        raise OSError(f"the {what} cannot be written: there is no standard output")
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(printable(text).encode(encoding, "replace").decode(encoding), flush=True)
    except OSError as error:
        # what is still buffered must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(141)  # what a shell says of programs that end so
        raise OSError(f"the {what} cannot be written: {error.strerror}") from None
