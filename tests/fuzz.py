"""Bring by chance what a user might bring, damaged, and see how each try ends: in an answer, or in one line that refuses it.

    python tests/fuzz.py checkpoints --count 1500 --seed 0      a kind of KINDS, so many tries
    python tests/fuzz.py all --count 100                        every kind
    python tests/fuzz.py checkpoints --seed 0 --first 41 --count 1      one try again, as a fault's line says

Each kind is a function (rng, folder) -> (what was tried, how it ended): ANSWERED, REFUSED, or anything else, which is a fault. It
draws from rng alone, so that a try can be run again, and may write into the folder, which is empty and its own. A traceback, a message
of several lines or with control characters, an answer that holds a mask, and a try that takes longer than --limit are faults.
"""

import contextlib
import copy
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that it runs from anywhere

from conftest import EOS, MASK, VOCABULARY, adapter_of, random_model, save_checkpoint  # puts the project on the path, too
from dllm import StepLimit, generate
from fuzz_calls import call
from load_weights import load_model, load_tokenizer

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


def calls(rng: random.Random, folder: Path) -> tuple[str, str]:
    """A call from Python with arguments of any type, size and nesting, and parts of strategies that do what they should not."""
    told, work = call(rng)
    return told, outcome(work)


# --- the frame -----------------------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[random.Random, Path], tuple[str, str]]] = {"checkpoints": checkpoints, "calls": calls}


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
