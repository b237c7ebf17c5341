"""Bring by chance what a user might bring, damaged, and see how each try ends: in an answer, or in one line that refuses it.

    python tests/fuzz.py checkpoints --count 1500 --seed 0      a kind of KINDS, so many tries
    python tests/fuzz.py all --count 100                        every kind
    python tests/fuzz.py checkpoints --seed 0 --first 41 --count 1      one try again, as a fault's line says

Each kind is a function (rng, folder) -> (what was tried, how it ended): ANSWERED, REFUSED, or anything else, which is a fault. It
draws from rng alone, so that a try can be run again, and may write into the folder, which is empty and its own. A traceback, a message
of several lines or with control characters, an answer that holds a mask, and a try that takes longer than --limit are faults.
"""

import atexit
import base64
import contextlib
import copy
import faulthandler
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that it runs from anywhere
sys.path.insert(1, str(Path(__file__).parent.parent))

import browser
import lab.trace
from conftest import EOS, MASK, VOCABULARY, adapter_of, random_model, save_checkpoint
from dllm import StepLimit, generate, prepare, stream
from fuzz_calls import call
from kills import kills
from lab.command_line import TINY
from load_weights import load_model, load_tokenizer
from strategies import STRATEGIES

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing that is tried asks the network

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
ANSWERED, REFUSED = "answered", "refused"


class Hang(BaseException):
    """A try took longer than its limit. No Exception, so that nothing on the way takes it for one of its own."""


@contextlib.contextmanager
def limit(seconds: float):
    """Raise Hang in the main thread after so many seconds; end the process if even that cannot get through."""

    def late(*_):
        raise Hang(f"longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    stderr = os.dup(2)  # which a try may turn away
    faulthandler.dump_traceback_later(5 * seconds, exit=True, file=stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(stderr)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def printed():
    """A function that says what has been printed to stderr, also by libraries that do so past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(2, 10_000, 0).decode(errors="replace")
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def outcome(work: Callable[[], str | None]) -> str:
    """How a piece of work ends. It returns what is wrong with its answer, if anything is, and prints nothing."""
    with printed() as stderr:
        end = how_it_ends(work)
        return f"printed {stderr()[:300]!r}, {end}" if stderr() else end


def how_it_ends(work: Callable[[], str | None]) -> str:
    try:
        return work() or ANSWERED
    except (ValueError, StepLimit) as error:
        return unlike_one_line(str(error)) or REFUSED
    except BaseException as error:  # of which some libraries have their own
        if isinstance(error, KeyboardInterrupt):
            raise
        return fault_of(error)


def fault_of(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:200]!r}"


def unlike_one_line(message: str) -> str | None:
    """What is wrong with a message that should be one line for a terminal."""
    if not message.strip():
        return "an empty message"
    if not message.isprintable():
        return f"a message with control characters or several lines: {message[:300]!r}"
    return f"a message of {len(message)} characters: {message[:100]!r}" if len(message) > 2000 else None


# --- checkpoints ---------------------------------------------------------------------------------------------------------------------


def checkpoints(rng: random.Random, folder: Path) -> tuple[str, str]:
    """A checkpoint and an adapter of random weights, of which one to three files are damaged: load all, ask once, read the answer."""
    shutil.copytree(whole_checkpoint(), folder, dirs_exist_ok=True)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(OSError):  # a file that an earlier damage has taken away
            done.append(rng.choice(DAMAGES)(rng, folder))
    with_adapter = rng.random() < 0.5 or any("adapter" in text for text in done)

    def work():
        tokenizer = load_tokenizer(folder)
        model = load_model(folder, folder / "adapter" if with_adapter else None, "cpu")
        ids = tokenizer.encode_chat([{"role": "user", "content": "abc 12?"}])
        result = generate(model, ids, "fast-dllm", gen_length=8, block_length=4, threshold=0.5)
        written = result.tokens[0, len(ids) :].tolist()
        if model.config.mask_token_id in written:
            return f"an answer with a mask: {written}"
        text = tokenizer.decode(result.answer())
        return None if isinstance(text, str) else f"an answer that is no text: {text!r}"

    return "; ".join(done), outcome(work)


def whole_checkpoint(made: list[tempfile.TemporaryDirectory] = []) -> Path:
    """The folder of the one that is damaged, made when first asked for: in shards, with an adapter and every file there can be."""
    if not made:
        made.append(tempfile.TemporaryDirectory())
        folder = Path(made[0].name)
        save_checkpoint(folder)
        adapter_of(folder / "adapter", random_model(0))
        tokens = {"bos_token": "a", "eos_token": {"content": "<eos>", "lstrip": False}}
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS], "pad_token_id": EOS}))
    return Path(made[0].name)


JSONS = ("config.json", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
TENSORS = ("model.safetensors", "adapter/adapter_model.safetensors")
FILES = (*JSONS, *TENSORS, "adapter/adapter_config.json")

ODD = [
    None, True, False, 0, -1, 1, 2, 3, 7, 0.5, 1e-308, 1e308, -0.0, float("nan"), float("inf"), float("-inf"), 2**31, 2**63, 2**64,
    -(2**63), 10**30, 10**400, 10**6, "", "a", "x" * 3000, "\x1b[31mred\x1b[0m", "two\nlines", "\u202eback", "\ud800", "none", "default",
    [], {}, [[]], [1], ["a"], {"a": 1}, [None], EOS, MASK, VOCABULARY, VOCABULARY - 1, "4", "1e5", "NaN",
]  # fmt: skip
KEYS = [
    "rope_scaling", "logit_softcap", "\x1b[2Jkey", "new\nline", "chat_template", "bos_token", "truncation", "padding", "normalizer",
    "post_processor", "decoder", "eos_token_id", "pad_token_id", "rope_parameters", "alora_invocation_tokens", "init_lora_weights",
    "model_type", "architectures", "embedding_size", "n_kv_heads", "mask_token", "added_tokens", "pre_tokenizer", "top_k", "",
]  # fmt: skip
TEXTS = [  # instead of a file of JSON
    "", " ", "{", "[]", "null", "NaN", "1", '"text"', "{}", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"d_model": ' + "1" * 5000 + "}",
    '{"d_model": 1e999}', '{"n_layers": 1, "n_layers": 2}', "\ufeff{}", "{'a': 1}", '{"a": 1,}', '{"a": Infinity}', "<html>", "\x00\x01",
    "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
]  # fmt: skip


def damage_bytes(rng: random.Random, folder: Path) -> str:
    """Cut a file off, or change, add or take out bytes of it."""
    name = rng.choice(FILES)
    data = bytearray((folder / name).read_bytes())
    place, how = rng.randrange(len(data) + 1), rng.choice(("cut", "flip", "insert", "remove", "zero", "empty", "delete", "folder"))
    if how in ("delete", "folder"):
        (folder / name).unlink()
        if how == "folder":
            (folder / name).mkdir()
        return f"{name}: {how}"
    if how == "flip":
        for _ in range(rng.choice((1, 1, 8))):
            at = rng.randrange(min(len(data), rng.choice((64, 10**9))) or 1)
            data[at : at + 1] = bytes([data[at] ^ (1 << rng.randrange(8))]) if data else b""
    else:
        end = place + rng.choice((1, 8, 100))
        new = {"cut": None, "insert": rng.randbytes(5), "remove": b"", "zero": bytes(len(data[place:end])), "empty": None}[how]
        if new is None:
            data = data[:place] if how == "cut" else b""
        else:
            data[place : place if how == "insert" else end] = new
    (folder / name).write_bytes(data)
    return f"{name}: {how} at {place}"


def damage_json(rng: random.Random, folder: Path) -> str:
    """Change, add or take out one value of a JSON file, wherever it stands."""
    name = rng.choice((*JSONS, "adapter/adapter_config.json"))
    with contextlib.suppress(ValueError, OSError, RecursionError):
        content = json.loads((folder / name).read_text())
        what = change_json(rng, content)
        (folder / name).write_text(json.dumps(content))
        return f"{name}: {what}"
    return f"{name}: as it is"


def change_json(rng: random.Random, content) -> str:
    spots = [(content, key) for key in (content if isinstance(content, dict) else ())]
    for parent, key in spots:
        child = parent[key]
        if isinstance(child, (dict, list)) and len(spots) < 300:
            spots += [(child, inner) for inner in (child if isinstance(child, dict) else range(len(child)))]
    parent, key = rng.choice(spots) if spots else ({}, "a")
    # as often at the top as anywhere below
    parent, key = (content, rng.choice(list(content))) if content and rng.random() < 0.5 else (parent, key)
    how, value = rng.choice(("value", "value", "value", "remove", "add", "rename", "copy")), copy.deepcopy(rng.choice(ODD))
    try:
        if how == "value":
            parent[key] = value
        elif how == "remove":
            del parent[key]
        elif how == "add" and isinstance(content, dict):
            key = rng.choice(KEYS)
            content[key] = value
        elif how == "rename":
            parent[rng.choice(KEYS)] = parent.pop(key)
        elif how == "copy":
            value = parent[key] = copy.deepcopy(rng.choice(spots)[0]) if spots else value
    except (TypeError, IndexError, KeyError):
        how = "nothing"
    return f"{how} {key!r} {str(value)[:60]!r}"


def damage_text(rng: random.Random, folder: Path) -> str:
    """Put something else altogether in the place of a JSON file."""
    name, text = rng.choice((*JSONS, "adapter/adapter_config.json")), rng.choice(TEXTS)
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).write_text(text)
    return f"{name}: {text[:40]!r}"


LETTERS = {letter: number for number, letter in enumerate("abc 12?")}
PARTS = {  # of a tokenizer.json: what its library knows, with numbers and texts that it may not expect
    "normalizer": [
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "Precompiled", "precompiled_charsmap": ""}, {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "ab"}, {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": "(a*)*$"}, "content": "b"}, {"type": "Prepend", "prepend": ""}, {"type": "Sequence", "normalizers": []},
        {"type": "Prepend", "prepend": "\x1b[31m"}, {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFKD"}, {"type": "ByteLevel"},
        {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}, {"type": "Replace", "pattern": {"Regex": "."}, "content": "é" * 1000},
    ],
    "pre_tokenizer": [
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}, {"type": "Whitespace"}, {"type": "UnicodeScripts"},
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": True}, {"type": "Digits", "individual_digits": True},
        {"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated", "invert": False}, {"type": "CharDelimiterSplit", "delimiter": "a"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}, {"type": "Sequence", "pretokenizers": []},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "FixedLength", "length": 0}, {"type": "FixedLength", "length": 2**40}, {"type": "BertPreTokenizer"},
    ],
    "decoder": [
        {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}, {"type": "Replace", "pattern": {"Regex": ""}, "content": "\x1b[2J"},
        {"type": "ByteFallback"}, {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}, {"type": "Sequence", "decoders": []},
        {"type": "WordPiece", "prefix": "", "cleanup": True}, {"type": "BPEDecoder", "suffix": ""}, {"type": "Strip", "content": "é", "start": 1, "stop": 3},
        {"type": "Metaspace", "replacement": "a", "prepend_scheme": "always", "split": False}, {"type": "ByteLevel"}, None,
    ],
    "post_processor": [
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}], "pair": [], "special_tokens": {}},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}, {"type": "BertProcessing", "sep": ["a", 2**32 - 1], "cls": ["b", 0]},
    ],
    "model": [
        {"type": "BPE", "vocab": LETTERS, "merges": []}, {"type": "BPE", "vocab": LETTERS, "merges": [["a", "b"]]}, {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "BPE", "vocab": LETTERS | {"ab": 7}, "merges": [["a", "b"]], "dropout": 2.0}, {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []},
        {"type": "BPE", "vocab": LETTERS, "merges": ["a"], "unk_token": "z", "byte_fallback": True}, {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]},
        {"type": "BPE", "vocab": LETTERS, "merges": [], "unk_token": "z"}, {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]},
        {"type": "Unigram", "unk_id": 0, "vocab": []}, {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0], ["b", 1e308]], "byte_fallback": True},
        {"type": "WordPiece", "vocab": LETTERS, "unk_token": "z", "continuing_subword_prefix": "", "max_input_chars_per_word": 0},
        {"type": "WordLevel", "vocab": LETTERS, "unk_token": "z"}, {"type": "WordLevel", "vocab": {}, "unk_token": ""},
        {"type": "BPE", "vocab": LETTERS, "merges": [], "dropout": 0.5, "continuing_subword_prefix": "é", "end_of_word_suffix": "a", "fuse_unk": True},
    ],
    "added_tokens": [
        [{"id": i, "content": text, "special": special, "normalized": normal, "single_word": False, "lstrip": True, "rstrip": False}]
        for i, text, special, normal in ((0, "", True, False), (2**32 - 1, "z", False, True), (500, "a", True, True), (39, "<mask>", False, True), (3, "?", False, False))
    ],
    "truncation": [{"max_length": n, "strategy": "OnlySecond", "stride": s, "direction": "Left"} for n, s in ((0, 0), (2, 5), (2**63, 1))],
    "padding": [
        {"strategy": how, "direction": "Left", "pad_to_multiple_of": n, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
        for how, n in (("BatchLongest", 0), ({"Fixed": 2**40}, None), ("BatchLongest", 2**50))
    ],
}  # fmt: skip


def damage_tokenizer(rng: random.Random, folder: Path) -> str:
    """Put other parts into the tokenizer: some do, some do not fit each other."""
    file, done = folder / "tokenizer.json", {}
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(file.read_text())
        for name in rng.sample(list(PARTS), rng.choice((1, 1, 2, 3))):
            done[name] = rng.choice(PARTS[name])
        if isinstance(content, dict):
            file.write_text(json.dumps(content | done))
    return f"tokenizer.json: {str(done)[:300]}"


TEMPLATES = [
    "{% for", "{{ raise_exception('no\n\x1b[31m') }}", "{{ 'a' * 10**10 }}", "{{ 10**(10**10) }}", "{{ 'a'|center(10**10) }}",
    "{% for i in range(10**9) %}a{% endfor %}", "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages[5].content }}", "{{ messages.nothing.at.all }}", "{{ 1 / 0 }}",
    "{{ messages + 1 }}", "{{ {}['a'] }}", "{{ 'a' + 1 }}", "{{ ''.__class__.__mro__ }}", "{{ messages | tojson }}", "{{ 'a' | nothing }}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}", "{{ '%10000000000d' % 1 }}",
    "{{ '{:10000000000}'.format(1) }}", "{{ 'a'.ljust(10**10) }}", "{{ [0] * 10**10 }}", "{{ lipsum(n=10**6) }}", "{% include 'x' %}",
    "{% extends 'x' %}", "{% import 'x' as y %}", "{{ self.__init__ }}", "{{ " + "(" * 2000 + " }}", "{{ " + "-" * 5000 + "1 }}", "",
    "{{ strftime_now('%Y') }}", "{% generation %}a{% endgeneration %}", "{% for m in messages %}{% break %}{% endfor %}a", "<mask>", "<eos>",
    "{{ '\ud800' }}", "{{ messages[0].content | int ** 99999 }}", "{{ 'é' * 500000 }}", "{{ bos_token }}{{ eos_token }}", "{% if %}",
    "{% for m in messages %}{{ m.role }}{{ m.content }}<eos>{% endfor %}", "{{ range(100000) | list | string * 100 }}",
]  # fmt: skip


def damage_template(rng: random.Random, folder: Path) -> str:
    """Another template, as text, in a list, or in its own file."""
    template = rng.choice(TEMPLATES)
    how = rng.choice(("text", "text", "named", "dict", "file"))
    file = folder / "tokenizer_config.json"
    if how == "file":
        (folder / "chat_template.jinja").write_text(template, errors="surrogatepass")
    else:
        forms = {"text": template, "named": [{"name": "default", "template": template}], "dict": {"default": template}}
        with contextlib.suppress(ValueError, OSError, RecursionError, TypeError):
            content = json.loads(file.read_text())
            content["chat_template"] = forms[how]
            file.write_text(json.dumps(content))
    return f"template as {how}: {template[:60]!r}"


def read_header(file: Path) -> tuple[dict, bytes]:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_header(file: Path, header, data: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode(errors="surrogatepass")
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def damage_header(rng: random.Random, folder: Path) -> str:
    """Change the header of a file of tensors: a name, a type, a shape, where the data lies, or any value."""
    file = folder / rng.choice(TENSORS)
    with contextlib.suppress(ValueError, OSError, RecursionError):
        header, data = read_header(file)
        name = rng.choice(list(header))
        how = rng.choice(("any", "rename", "dtype", "shape", "offsets", "text", "data", "one more"))
        if how == "any":
            how += " " + change_json(rng, header)
        elif how == "rename":
            header[rng.choice(("\x1b[31m", "a\nb", "", "x" * 5000, name + ".default", name.upper(), name + "_scale"))] = header.pop(name)
        elif how == "dtype":
            header[name]["dtype"] = rng.choice(("F8_E4M3", "F64", "I8", "U8", "BOOL", "BF16", "F16", "I64", "C64", "F4", "nonsense"))
        elif how == "shape":
            header[name]["shape"] = rng.choice(([], [0], [2**63], [2**32, 2**32], [-1], [1, *header[name]["shape"]], [10**30]))
        elif how == "offsets":
            header[name]["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [5, 1], [-1, 4], [0], [0, 10**30], [0, len(data)]))
        elif how == "data":
            data = data + b"more" if rng.random() < 0.5 else data[: len(data) // 2]
        elif how == "one more":
            header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
            data += b"1234"
        write_header(file, rng.choice(TEXTS) if how == "text" else header, data)
        return f"{file.name}: header, {how}, {name}"
    return f"{file.name}: as it is"


def damage_numbers(rng: random.Random, folder: Path) -> str:
    """Put strange numbers into a tensor: those that are none, and those that become such when they are added or multiplied."""
    file = folder / rng.choice(TENSORS)
    with contextlib.suppress(ValueError, OSError, RecursionError, KeyError, TypeError):
        header, data = read_header(file)
        name = rng.choice([name for name in header if name != "__metadata__"])
        start, end = header[name]["data_offsets"]
        number = rng.choice((float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e30, 1e-40, 0.0))
        count = rng.choice((1, (end - start) // 4))
        new = torch.full((count,), number).numpy().tobytes()
        write_header(file, header, data[:start] + new + data[start + len(new) :])
        return f"{file.name}: {count} times {number} in {name}"
    return f"{file.name}: as it is"


def damage_index(rng: random.Random, folder: Path) -> str:
    """Name the weights in an index, rightly or not, with or without the single file."""
    with contextlib.suppress(ValueError, OSError, RecursionError):
        header, _ = read_header(folder / "model.safetensors")
        single = rng.random() < 0.3
        shard = rng.choice(
            ("model-1.safetensors", "model-1.safetensors", None, 5, [], {}, "../model.safetensors", "/etc/passwd", "\x1b[31m", "")
        )
        content = {"metadata": {}, "weight_map": dict.fromkeys(header, shard)}
        how = change_json(rng, content) if rng.random() < 0.5 else "whole"
        (folder / "model.safetensors.index.json").write_text(rng.choice(TEXTS) if rng.random() < 0.2 else json.dumps(content))
        shutil.copy(folder / "model.safetensors", folder / "model-1.safetensors")
        if not single:
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        return f"index to {shard!r}: {how}, {'beside' if single else 'without'} the single file"
    return "index: none"


def mild(rng: random.Random, folder: Path) -> str:
    """What is no damage at all, so that what comes after the checks is tried, too."""
    changes = (
        ("config.json", "rms_norm_eps", rng.choice((1e-6, 1, 0.1))),
        ("config.json", "rope_theta", rng.choice((1, 2, 10000, 1e12))),
        ("config.json", "eos_token_id", [EOS, rng.randrange(EOS)]),
        ("config.json", "max_sequence_length", rng.choice((1, 16, 20, 2**24))),
        ("config.json", rng.choice(("id2label", "top_k", "return_dict", "_comment")), rng.choice(ODD[:12])),
        ("generation_config.json", "eos_token_id", [rng.randrange(EOS), EOS]),
        ("tokenizer.json", "truncation", {"max_length": rng.randrange(9), "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
        ("tokenizer_config.json", "chat_template", "{{ messages[0].content }}" + rng.choice(("<eos>", "a", "<mask>", " "))),
        ("adapter/adapter_config.json", "lora_alpha", rng.choice((1, 1e-30, 1e6, 0.5))),
    )
    name, key, value = rng.choice(changes)
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads((folder / name).read_text())
        if isinstance(content, dict):
            (folder / name).write_text(json.dumps(content | {key: value}))
    return f"{name}: mildly, {key} {value!r}"


DAMAGES = (
    mild, mild, mild, mild, damage_tokenizer, damage_tokenizer, damage_tokenizer,
    damage_bytes, damage_json, damage_json, damage_json, damage_text, damage_template, damage_header, damage_numbers, damage_index,
)  # fmt: skip

# --- command lines -------------------------------------------------------------------------------------------------------------------


def lines(rng: random.Random, folder: Path) -> tuple[str, str]:
    """A command line of one of the programs, in which up to four words are damaged: exit code 0, or 2 with one line on stderr."""
    furnish(folder)
    program, words, bounds = rng.choice(LINES)
    words = words.split()
    flags = known_flags(program, tuple(takewhile(str.isalnum, words)))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
        damage_words(rng, words, flags)
    return f"{program} {words} {bounds}", outcome(lambda: told(program, [*words, *bounds.split()], folder, rng))


# What is damaged; what stands behind it keeps a run short, whatever the rest says. `$` is the folder.
SMALL = "--gen-length 16 --block-length 8"
DATA = "--limit 1 --gen-length 32"
TRAINED = "--no-compile --steps 1 --batch 1 --processes 1 --out w --run r"
LINES = [
    *[("lab.command_line", f"--prompt hello --strategy {name} {SMALL}", "--model checkpoint") for name in STRATEGIES],
    ("lab.command_line", f"--prompt hello --strategy fast-dllm --cache dual --threshold 0.5 {SMALL} --seed 3", "--model checkpoint"),
    ("lab.command_line", f"--prompt hello --strategy llada --remasking random --temperature 1 --steps 4 {SMALL}", "--model checkpoint"),
    ("lab.command_line", f"--prompt - --strategy streaming --json --raw --show-prompt {SMALL}", "--model checkpoint"),
    ("lab.command_line", f"--prompt hello --watch 0 --explain --trace run.html {SMALL}", "--model checkpoint"),
    ("lab.command_line", f"--prompt hello --trace run.jsonl --cfg-scale 0.5 --eos suppress {SMALL}", "--model checkpoint"),
    ("lab.command_line", "--prompt hello --infill a___b___3c --strategy credit --block-length 4", "--model checkpoint"),
    ("lab.command_line", f"--chat --strategy localleap --radius 2 {SMALL}", "--model checkpoint"),
    ("lab.command_line", f"--prompts prompts.jsonl --out answers.jsonl --batch-size 2 {SMALL}", "--model checkpoint"),
    ("lab.command_line", f"--prompt hello --strategy rule.py:rule --cache dual {SMALL}", "--model checkpoint"),
    ("lab.command_line", f"--prompt hello --strategy guided --guide checkpoint --top 3 {SMALL}", "--model checkpoint"),
    ("lab.command_line", f"--prompt hello --adapter checkpoint/adapter --int8 --dtype bfloat16 --device cpu {SMALL}", "--model checkpoint"),
    ("lab.command_line", "--model oracle:permutation-6 --prompt go --gen-length 6 --block-length 3 --temperature 1", ""),
    ("lab.command_line", "--strategy list", ""),
    ("lab.bench", "compare --strategies streaming,fast-dllm:cache=dual:threshold=0.8 --seed 5", "--limit 1 --task add --gen-length 32"),
    ("lab.bench", "compare --strategies llada --sweep --eos own --json", "--limit 1 --task add --gen-length 32"),
    ("lab.bench", "compare --strategies rule.py:rule,greedy-oracle --plot a.svg --paired", "--limit 1 --task add --gen-length 32"),
    ("lab.bench", "compare --strategies d2f --model checkpoint --adapter checkpoint/adapter", "--limit 1 --task add --gen-length 32"),
    ("lab.bench", "compare --data data.jsonl --strategies streaming,rule.py:rule --few-shot data.jsonl --turns many --until . --out out.jsonl", DATA),
    ("lab.bench", "compare --data data.jsonl --strategies llada:steps=4 --gold \\d --extract (\\d+) --csv --model checkpoint --turns raw", DATA),
    ("lab.bench", "compare --data data.jsonl --strategies streaming --check check.py:judge --question question --latex --batch-size 2", DATA),
    ("lab.bench", "delayed --gen-length 32 --batch-size 2 --dtype float32", "--limit 1 --task add --gen-length 32"),
    ("lab.bench", "oracle --limit 2 --length 4 --seed 1", "--limit 2"),
    ("lab.bench", "speed --caches dual,none --gen-length 96 --block-length 32 --prompt-length 8", "--shapes tiny --batch 1 --rounds 1"),
    ("lab.calibrate", "graph.json --nodes 2 --threshold 0.5", f"--limit 1 --model {TINY}"),
    ("lab.likelihood", "--prompt a --answer abc --order 2,0,1 --seed 3 --batch-size 2 --raw", "--model checkpoint --samples 3"),
    ("lab.likelihood", "--model oracle:bits-4 --prompt go --answer ABBA --order random --samples 4", ""),
    ("lab.trace", "run.jsonl --out two.html", ""),
    ("lab.train", "--steps 1 --seed 2 --muon 0.02", f"{TRAINED} --width 24 --layers 1 --heads 1 --ffn 16"),
    ("lab.train", "d2f --steps 1 --seed 2", f"{TRAINED} --teacher {TINY}"),
    ("lab.train", "filter --seed 1 --cache dual", f"--limit 2 --steps 2 --model {TINY} --out filter.safetensors"),
    ("lab.calibrate", "--layers 1", f"--limit 1 --model {TINY}"),
]  # fmt: skip
NUMBERS = ["0", "1", "2", "3", "4", "8", "16", "0.3", "0.5", "0.9", "1.0", "2.0", "none"]  # which most settings take
WORDS = [
    "", " ", "0", "-1", "1", "2", "3", "7", "8", "16", "0.5", "0.9", "90", "1e308", "1e-308", "-0.0", "nan", "inf", "-inf", "1000000", "2**3",
    str(2**31), str(2**63), str(2**64), "9" * 400, "9" * 5000, "1_000", "٣", "none", "None", "true", "False", "list", "auto", "a", "é中",
    "\x1b[31mred", "two\nlines", "\ud800", "\u202eback", "x" * 3000, "-", "--", "---", "-x", "--=", "a b", "=", ":", ",", "a=b", "a:b=c",
    "checkpoint", "checkpoint/config.json", "checkpoint/adapter", "nowhere", "./nowhere", "nobody/nothing", "rule.py", "rule.py:rule",
    "rule.py:nothing", "rule.py:number", "check.py:judge", "data.jsonl", "(", "(\\d)|x", "[", "fails.py:rule", "endless.py:rule", "prompts.jsonl", "empty.jsonl", "bytes.jsonl", "answers.jsonl", ".",
    "/", "/dev/null", "/dev/full", "no/such/file.jsonl", "run.html", "run.jsonl", "graph.json", "oracle:bits-4", "oracle:bits-99", "oracle:",
    "llada", "fast-dllm", "fast-dllm:threshold=nan", "llada:steps=0", "d2f:adapter=none", "fast-dllm:model=checkpoint", "ar,ar", "prism",
    "cpu", "cuda", "cuda:99", "meta", "mps", "float32", "fp8", "fill", "stop", "defer", "dual", "exact", "___", "___0", "_", "1,2", "0,0", "-1,3",
]  # fmt: skip


@functools.cache
def known_flags(program: str, command: tuple[str, ...]) -> list[str]:
    """The flags that a program's help tells of, but for the one whose compilation takes minutes."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        import_module(program).main([*command, "--help"])
    return sorted(set(re.findall(r"--[a-z][\w-]*", said.getvalue())) - {"--compile"})


HOW = ("number", "number", "number", "value", "value", "flag", "flag", "drop", "double", "swap", "spell", "join")


def damage_words(rng: random.Random, words: list[str], flags: list[str]) -> None:
    """Change, add, drop, double or misspell a word of a command line."""
    at, how = rng.randrange(len(words)), rng.choice(HOW)
    word = rng.choice(WORDS if rng.random() < 0.6 else NUMBERS)
    if how == "number":
        numbers = [i for i, w in enumerate(words) if w in NUMBERS]
        words[rng.choice(numbers) if numbers else at] = rng.choice(NUMBERS)
    elif how == "value":
        values = [i for i, w in enumerate(words) if not w.startswith("--")]
        words[rng.choice(values) if values else at] = word
    elif how == "flag":
        words[at:at] = [rng.choice(flags), *([word] if rng.random() < 0.8 else [])]
    elif how == "drop":
        del words[at : at + (len(words) > 1)]
    elif how == "double":
        words.insert(at, words[at])
    elif how == "swap":
        other = rng.randrange(len(words))
        words[at], words[other] = words[other], words[at]
    elif how == "spell":
        cut = rng.randrange(len(words[at]) + 1)
        words[at] = words[at][:cut] + rng.choice(("", "x", "-", "=", ":", ",")) + words[at][cut + 1 :]
    else:
        words[at] += rng.choice((",", ":", "=", ",,", ":cache=")) + word


def furnish(folder: Path) -> None:
    """What command lines name."""
    shutil.copytree(whole_checkpoint(), folder / "checkpoint")
    (folder / "rule.py").write_text("number = 5\n\n\ndef rule(scores, candidates, window):\n    return scores.confidence > 0.5\n")
    (folder / "fails.py").write_text("raise RuntimeError('no\\n\\x1b[31mrule')\n")
    (folder / "endless.py").write_text("def rule(scores, candidates, window):\n    return candidates & False\n")
    (folder / "prompts.jsonl").write_text('{"id": 1, "prompt": "hello"}\n{"prompt": "abc"}\n{"prompt": 5}\nnonsense\n')
    (folder / "data.jsonl").write_text('{"question": "a", "answer": "5"}\n{"id": "x", "question": "b c", "answer": 7}\n')
    (folder / "check.py").write_text("def judge(line, text):\n    return text == line['answer']\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "bytes.jsonl").write_bytes(b"\xff\x00\n{}")
    shutil.copy(GALLERY / "llada.jsonl", folder / "run.jsonl")
    (folder / "graph.json").write_text("[[[0, 0]]]")


def told(program: str, words: list[str], folder: Path, rng: random.Random) -> str | None:
    """Run it in this process; what is wrong with what it says."""
    said, out, before, here = io.StringIO(), io.StringIO(), dict(STRATEGIES), Path.cwd()
    stdin = io.TextIOWrapper(io.BytesIO(rng.choice((b"", b"hello\n", b"a\n/new\nb\n/what\n/quit\n", b"\xff\x00\n", b"\n \n"))))
    real, time.sleep, sys.stdin = (time.sleep, sys.stdin), lambda seconds: None, stdin
    code = 0
    try:
        os.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            import_module(program).main(words)
    except SystemExit as exit:
        code = exit.code or 0
    except Exception as error:
        return fault_of(error)
    finally:
        os.chdir(here)
        (time.sleep, sys.stdin), text = real, out.getvalue() + said.getvalue()
        STRATEGIES.clear()
        STRATEGIES.update(before)
        torch.set_num_threads(1)
    if "\x1b" in text or "Traceback" in text:
        return f"control characters or a traceback: {text[-300:]!r}"
    if code == 1 and any(word.startswith("--prompts") for word in words):  # some lines have no answer
        return None
    if code not in (0, 2):
        return f"exit code {code}"
    if code and program == "lab.command_line" and out.getvalue() and "--chat" not in words:
        return f"half an answer: {out.getvalue()!r}"
    if code:
        # which must be one line, progress that was drawn anew left out
        raise ValueError(re.sub("[^\n]*\r", "", said.getvalue()).removesuffix("\n"))
    return None


# --- traces --------------------------------------------------------------------------------------------------------------------------


def traces(rng: random.Random, folder: Path) -> tuple[str, str]:
    """A trace of which one to three lines are damaged: read it, replay it, make a page of it, and open it in the page if that is here."""
    lines = list(rng.choice(whole_traces()))
    done = [damage_line(rng, lines) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    data = b"\n".join(lines) + b"\n" * (rng.random() < 0.9)
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
        done.append(f"cut to {len(data)} bytes")
    (folder / "run.jsonl").write_bytes(data)

    def work():
        try:
            in_the_page = open_trace(data)
        except RuntimeError as error:
            return f"in the page: {error}"
        if in_the_page and not re.fullmatch(SENTENCE, in_the_page):
            return f"the page says {in_the_page[:300]!r}"
        records = lab.trace.read(folder / "run.jsonl")
        canvases = list(lab.trace.replay(records))
        slots = records[0]["prompt_length"] + records[0]["gen_length"]
        if len(canvases) != len(records) - 1 or any(len(canvas) != slots for canvas in canvases):
            return "a replay of another length"
        if slots <= lab.trace.DRAWN and in_the_page:
            return f"the reader takes what the page refuses: {in_the_page}"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):
            lab.trace.main([str(folder / "run.jsonl"), "--out", str(folder / "page.html")])
        if (folder / "page.html").exists():
            text = (folder / "page.html").read_text().split('id="traces">')[1].split("</script>")[0]
            return None if json.loads(text) == [records] else "a page of another trace"
        raise ValueError(said.getvalue().rstrip("\n"))

    return "; ".join(done), outcome(work)


SENTENCE = (
    r"run.jsonl is no trace, or a damaged one: (its first line is not the header of one|its version is (\d+|unknown), this page reads "
)
SENTENCE += r"version 1|line \d+ is not a whole record|a canvas of \d+ slots: a page draws at most \d+)"


def whole_traces(made: list[list[bytes]] = []) -> list[list[bytes]]:
    """The lines of those that are damaged: of a cache, of tokens taken back, of an answer that was half given."""
    if not made:
        template = {"template": [1, MASK, 2, *[MASK] * 5, 3]}
        for strategy, how in (("fast-dllm", {"gen_length": 16}), ("saber", {"gen_length": 16}), ("llada", template)):
            template = how.pop("template", None)
            canvas = prepare(random_model(0), [[1, 2, 3, 4, 5]], strategy, how | {"block_length": 8}, template and [template])
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "run.jsonl"
                for _ in lab.trace.trace(stream(canvas), canvas, Letters(), str(path), strategy, {"threshold": 0.9}, 0, "what?"):
                    pass
                made.append(path.read_bytes().splitlines())
    return made


class Letters:
    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(97 + i % 26) for i in ids)


def damage_line(rng: random.Random, lines: list[bytes]) -> str:
    """Change a value of a line, or its bytes, or take it out, double it, put another in its place."""
    number = rng.choice((0, rng.randrange(len(lines)))) if lines else 0
    how = rng.choice(("value", "value", "value", "value", "bytes", "remove", "double", "swap", "text", "empty"))
    with contextlib.suppress(ValueError, RecursionError, IndexError, TypeError):
        if how == "value":
            content = json.loads(lines[number])
            how += " " + change_json(rng, content)
            lines[number] = json.dumps(content).encode()
        elif how == "bytes":
            line = bytearray(lines[number])
            for _ in range(rng.choice((1, 1, 8))):
                line[rng.randrange(len(line))] = rng.randrange(256)
            lines[number] = bytes(line)
        elif how == "remove":
            del lines[number]
        elif how == "double":
            lines.insert(number, lines[number])
        elif how == "swap":
            other = rng.randrange(len(lines))
            lines[number], lines[other] = lines[other], lines[number]
        else:
            lines[number] = rng.choice(TEXTS).encode() if how == "text" else b""
        return f"line {number + 1}: {how}"
    return "nothing"


def open_trace(data: bytes, opened: list = []) -> str:
    """What the page says when it is given this file: nothing if it shows it. RuntimeError if its script fails."""
    if browser.PROGRAM is None:
        return ""
    if not opened:
        page = browser.Browser().__enter__()
        atexit.register(page.__exit__)
        page.open(lab.trace.VIEWER)
        opened.append(page)
    file = f"new File([Uint8Array.from(atob('{base64.b64encode(data).decode()}'), (c) => c.charCodeAt(0))], 'run.jsonl')"
    script = f"openFiles([{file}]).then(() => {{ if (!$('problem').hidden) return $('problem').textContent; show(1); show(last()); return ''; }})"
    return opened[0].run(script)


# --- calls -----------------------------------------------------------------------------------------------------------------------------


def calls(rng: random.Random, folder: Path) -> tuple[str, str]:
    """A call from Python with arguments of any type, size and nesting, and parts of strategies that do what they should not."""
    told, work = call(rng)
    return told, outcome(work)


# --- the frame -----------------------------------------------------------------------------------------------------------------------

Kind = Callable[[random.Random, Path], tuple[str, str]]
KINDS: dict[str, Kind] = {"checkpoints": checkpoints, "calls": calls, "lines": lines, "traces": traces, "kills": kills}


def attempt(kind: str, seed: int, number: int, seconds: float = 20) -> tuple[str, str]:
    """One try: what was tried, and how it ended."""
    rng = random.Random(f"{kind} {seed} {number}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            with limit(seconds):
                return KINDS[kind](rng, Path(folder))
        except Hang as late:
            return "?", f"Hang: {late}"


def run(kind: str, count: int, seed: int = 0, first: int = 0, seconds: float = 20, report: Callable[[str], None] = print) -> Counter:
    """Try a kind so often: how many tries ended in what. Each fault is reported with the command that runs it again."""
    ends: Counter = Counter()
    for number in range(first, first + count):
        tried, end = attempt(kind, seed, number, seconds)
        ends[end if end in (ANSWERED, REFUSED) else "faults"] += 1
        if end not in (ANSWERED, REFUSED):
            report(f"fault: {end}\n  tried: {tried}\n  again: python tests/fuzz.py {kind} --seed {seed} --first {number} --count 1")
    return ends


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=float, default=20, help="seconds that a try may take")
    args = parser.parse_args()
    torch.set_num_threads(1)
    faults = 0
    for kind in KINDS if args.kind == "all" else [args.kind]:
        ends = run(kind, args.count, args.seed, args.first, args.limit)
        clean = ends[ANSWERED] + ends[REFUSED]
        print(
            f"{kind}: tried {sum(ends.values())}, clean {clean} (answered {ends[ANSWERED]}, refused {ends[REFUSED]}), faults {ends['faults']}"
        )
        faults += ends["faults"]
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
