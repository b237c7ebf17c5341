"""What a checkpoint's folder holds beside weights: JSON, tokenizer, chat template, end tokens.

Nothing in it is trusted. A template is rendered in a sandbox, within limits of steps and memory;
every problem is a ValueError of one line, which holds no control characters of a file.

Formats: tokenizer.json of Hugging Face's tokenizers, or vocab.json and merges.txt of Qwen 2; chat
templates in the environment for which they are written, that of transformers. Left out on purpose:
other vocabularies, templates with other names than `default`, tools and documents.
"""

import functools
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

STEPS = 5_000_000  # events of tracing that a template may take: a second; 10 KB take one million
MEMORY = 2**29  # bytes that it may build
LENGTH = 1_000_000  # characters that it may add to the messages
FILE = 2**27  # bytes of a file that is read as a whole: a large vocabulary's take 2**25
ADDED = 10_000  # tokens that a tokenizer may have beside its vocabulary


def one_line(text: str) -> str:
    """Text of a file or a library for a message: nothing that commands a terminal, and no more
    than one can read."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return text if len(text) <= 500 else text[:400] + " ... " + text[-95:]


def refuse(wrong: object, where: Path, what: str) -> None:
    if wrong:
        raise ValueError(one_line(f"{where}: {what}"))


# --- files ----------------------------------------------------------------------------------------


def find_folder(source: str | Path) -> Path:
    """A folder as it is; owner/name is fetched from Hugging Face, or found in its cache."""
    if os.path.isdir(source):  # unlike Path's, False for a name that can be none
        return Path(source)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        neither = f"no checkpoint at {source}: give a folder or a Hugging Face id, owner/name"
        raise ValueError(one_line(neither))
    from huggingface_hub import snapshot_download  # half a second that a folder need not pay

    try:
        patterns = ["*.json", "*.jinja", "merges.txt", "*.safetensors"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # the hub raises its own, the HTTP library's and the system's
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        neither = f"{source} is neither a folder here nor to be had from Hugging Face"
        raise ValueError(one_line(f"{neither}: {reason}")) from error


def find_file(folder: Path, name: str, note: str = "") -> Path:
    refuse(not os.path.isfile(folder / name), folder, f"{name} is missing{note}")
    return folder / name


def check_size(file: Path) -> None:
    large = os.path.isfile(file) and os.path.getsize(file) > FILE
    refuse(large, file, f"is larger than {FILE // 2**20} MB")


def read_text(file: Path, form: str = "text") -> str:
    check_size(file)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(one_line(f"{file} is not readable as {form}: {error}")) from None


def read_json(file: Path) -> dict:
    def no_number(name: str):
        raise ValueError(f"{name} is no number")

    text = read_text(file, "JSON")
    try:
        content = json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
        raise ValueError(one_line(f"{file} is not readable as JSON: {error}")) from None
    refuse(type(content) is not dict, file, f"expected an object, found a {type(content).__name__}")
    return content


def read_settings(folder: Path, name: str) -> dict:
    """The content of a file of JSON that need not be there."""
    return read_json(folder / name) if (folder / name).is_file() else {}


def listed_ends(folder: Path, name: str) -> list[int]:
    """The end tokens that config.json or generation_config.json lists, in its order."""
    given = read_settings(folder, name).get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    odd = f"eos_token_id is {given!r}, expected a token id, or several"
    refuse(any(type(i) is not int for i in ids), folder / name, odd)
    return ids


# --- the tokenizer --------------------------------------------------------------------------------


class Tokenizer:
    """Tokenizer and chat template of a checkpoint: a folder or a Hugging Face id."""

    def __init__(self, source: str | Path):
        from tokenizers import Tokenizer as Encoder

        folder = find_folder(source)
        settings = read_settings(folder, "tokenizer_config.json")
        apart = os.path.isfile(folder / "vocab.json")  # vocabulary, merges and added tokens: Dream
        apart &= not os.path.isfile(folder / "tokenizer.json")
        note = ", or vocab.json with merges.txt"
        self.file = folder / "vocab.json" if apart else find_file(folder, "tokenizer.json", note)
        check_size(self.file)
        if apart:
            kind, odd = settings.get("tokenizer_class"), settings.get("add_prefix_space")
            strange = f"tokenizer_class {kind}, add_prefix_space {odd}: of the tokenizers without "
            fits = not odd and re.match("Dream|Qwen2|DiffuCoder", str(kind or "Dream"))
            refuse(not fits, folder, f"{strange} tokenizer.json only Qwen 2's is implemented")
            check_size(find_file(folder, "merges.txt"))
            files = str(self.file), str(folder / "merges.txt")
            self.encoder = self.ask("and merges.txt are not a tokenizer", byte_level, *files)
            self.add_tokens(settings, folder / "tokenizer_config.json")
        else:
            self.encoder = self.ask("is not a tokenizer", Encoder.from_file, str(self.file))
        # what a file may ask for that was saved in training, and what would be done silently
        self.encoder.no_truncation()
        self.encoder.no_padding()
        if hasattr(self.encoder.model, "dropout"):
            self.encoder.model.dropout = None
        newer, older = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        template = read_text(newer) if newer.is_file() else settings.get("chat_template")
        self.template = default_template(template, older)
        # bos_token and its like, to which templates refer
        self.names: dict[str, str] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            self.names |= special_tokens(folder / name, read_settings(folder, name))
        turn = self.end_of_turn()
        self.ends = set() if turn is None else {turn}  # tokens at which an answer ends
        pad, mask = self.names.get("pad_token"), self.names.get("mask_token")
        if apart and pad not in (None, mask):  # DiffuCoder writes it behind an answer, not the EOS
            self.ends |= {self.encoder.token_to_id(pad)} - {None}
        for name in ("config.json", "generation_config.json"):
            self.ends |= set(listed_ends(folder, name))

    def add_tokens(self, settings: dict, file: Path) -> None:
        """Add what tokenizer_config.json lists, by rising id: the library numbers them itself."""
        from tokenizers import AddedToken

        given, flags = settings.get("added_tokens_decoder"), ("lstrip", "rstrip", "single_word")
        listed = isinstance(given, dict) and 0 < len(given) <= ADDED
        refuse(not listed, file, f"added_tokens_decoder has no list of 1 to {ADDED} tokens")
        tokens = {}
        for key, token in given.items():
            content = token.get("content") if isinstance(token, dict) else None
            fits = re.fullmatch("[0-9]{1,9}", key) and isinstance(content, str) and content
            refuse(not fits, file, f"added_tokens_decoder holds {key!r}: {token!r}, no token")
            own = {flag: token.get(flag) is True for flag in (*flags, "normalized", "special")}
            tokens[int(key)] = AddedToken(content, **own)
        add = self.encoder.add_tokens
        self.ask("takes no such tokens", add, [tokens[number] for number in sorted(tokens)])
        for number, token in tokens.items():
            found = self.encoder.token_to_id(token.content)
            other = f"the token {token.content!r} is {found} behind vocab.json, not {number}"
            refuse(found != number, file, other)

    def ask(self, problem: str, work: Callable, *arguments):
        """What the tokenizers library answers. Its errors are bare Exceptions, or panics of Rust:
        no Exceptions, and printed before they are raised."""
        try:
            with silence():
                return work(*arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise ValueError(one_line(f"{self.file} {problem}: {error}")) from None

    def encode(self, text: str) -> list[int]:
        """Text as it stands: nothing is added in front or behind."""
        encode = functools.partial(self.encoder.encode, add_special_tokens=False)
        return self.ask("cannot encode this text", encode, text).ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Put [{"role": ..., "content": ...}, ...] through the template, up to where it answers."""
        return self.encode(self.render(messages, True))

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.ends]
        return self.ask("cannot decode this", self.encoder.decode, ids, skip_special_tokens)

    def render(self, messages: list[dict[str, str]], answers: bool) -> str:
        """The text that the template makes of them, up to where the model answers or what is said
        ends."""
        if not self.template:
            without = "this checkpoint has no chat template"
            raise ValueError(f"{without}: give the prompt as raw text (--raw)")
        given = {"messages": messages, "add_generation_prompt": answers}
        # also without tools they are given: templates ask whether they are none
        return render(self.template, self.names | {"tools": None, "documents": None} | given)

    def end_of_turn(self) -> int | None:
        """The token that the template writes behind an answer: some checkpoints' end token is
        known from there alone, as LLaDA-Instruct's first one."""
        answer = "zqz"
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
        with suppress(ValueError):  # not every template takes every conversation
            _, found, behind = self.render(talk, False).rpartition(answer)
            added = self.encoder.get_added_tokens_decoder().items() if found else ()
            fits = [(len(t.content), i) for i, t in added if behind.lstrip().startswith(t.content)]
            return max(fits)[1] if fits else None
        return None


# Qwen 2's: contractions, words with one sign before them, single digits, signs, line ends, spaces
PIECES = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
    )
)  # fmt: skip


def byte_level(vocabulary: str, merges: str):
    """The encoder of Qwen 2, whose vocabulary and merges are files of their own."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    encoder = Tokenizer(models.BPE.from_file(vocabulary, merges))
    encoder.normalizer = normalizers.NFC()
    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])
    encoder.decoder = decoders.ByteLevel()
    return encoder


def special_tokens(file: Path, settings: dict) -> dict[str, str]:
    """{"bos_token": ...} and its like: in the file each is a text or {"content": text}."""
    found = {}
    for key, token in settings.items():
        if key.endswith("_token") and not key.startswith("add_") and token:
            text = token.get("content") if isinstance(token, dict) else token
            refuse(not isinstance(text, str), file, f"{key} is {token!r}, expected text")
            found[key] = text
    return found


def default_template(given, file: Path) -> str | None:
    """The chat template, which stands alone, or among others as {name: template} or as a list."""
    if isinstance(given, list):
        whole = all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in given)
        refuse(not whole, file, f"chat_template is {given!r}, expected objects with a name each")
        given = {t["name"]: t.get("template") for t in given}
    if isinstance(given, dict):
        names = ", ".join(given)
        refuse("default" not in given, file, f"no chat_template is called default, only: {names}")
        given = given["default"]
    refuse(not isinstance(given, str | None), file, f"chat_template is {given!r}, expected text")
    return given


ONE_AT_A_TIME = threading.Lock()


@contextmanager
def silence() -> Iterator[None]:
    """Drop what is printed past Python, as Rust does when it panics."""
    with ONE_AT_A_TIME, open(os.devnull, "wb") as nowhere, ExitStack() as after:
        with suppress(OSError):  # nobody listens
            kept = os.dup(2)
            after.callback(os.close, kept)
            after.callback(os.dup2, kept, 2)
            os.dup2(nowhere.fileno(), 2)
        yield


# --- the chat template ----------------------------------------------------------------------------


def render(template: str, given: dict) -> str:
    """The text that a template makes. Whatever it raises, and too much of anything, is one line."""
    environment()  # whose imports are not the template's steps
    try:
        with few_steps(), little_memory():
            text = compiled(template).render(given)
    except Refusal as error:
        what = f"the checkpoint's chat template refuses these messages: {error}"
        raise ValueError(one_line(what)) from None
    except Exception as error:
        what = f"{type(error).__name__}, {error}" if str(error) else type(error).__name__
        raise ValueError(one_line(f"the checkpoint's chat template fails: {what}")) from None
    asked = sum(len(str(message.get("content"))) for message in given["messages"])
    if len(text) > asked + LENGTH:
        more = f"makes {len(text)} characters of {asked}, the most is {LENGTH} more"
        raise ValueError(f"the checkpoint's chat template {more}")
    return text


class Refusal(Exception):
    """A template has called raise_exception."""


def raise_exception(message: str):
    raise Refusal(message)


@functools.lru_cache(8)
def compiled(template: str):
    return environment().from_string(template)


@functools.cache
def environment():
    """Jinja as chat templates expect it: without access to Python, with loop controls, the
    generation tag, and JSON as it is, where jinja's own is for HTML."""
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """{% generation %} marks what an assistant says, for training: here it is left as it is."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context, operator, left, right):
            """Numbers of a sane size: one multiplication of others is a step that takes hours."""
            if type(left) is type(right) is int:
                power = abs(right) if operator == "**" else 1
                if left.bit_length() * power > 10_000:
                    raise OverflowError("a number of thousands of digits")
            return super().call_binop(context, operator, left, right)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    extensions = [Generation, ext.loopcontrols]
    jinja = Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    jinja.filters["tojson"] = tojson
    jinja.globals["raise_exception"] = raise_exception
    jinja.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return jinja


@contextmanager
def few_steps() -> Iterator[None]:
    """Raise in what runs too long. Counted, not timed: the same on every machine."""
    left, before = STEPS, sys.gettrace()

    def step(frame, event, argument):
        nonlocal left
        left -= 1
        if left < 0:
            raise TimeoutError(f"it takes more than {STEPS} steps")
        return step

    sys.settrace(step)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let the system refuse memory above what there is and MEMORY, where it can: on Linux."""
    used = Path("/proc/self/statm")
    if not used.is_file():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(used.read_text().split()[0]) * resource.getpagesize() + MEMORY
    allowed = [most] + [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
