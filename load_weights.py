"""From files to a model that runs: config.json, safetensors, a LoRA adapter, tokenizer, template.

Weights are data: only safetensors is read (no pickle), no code from a checkpoint runs, and its
template is rendered in a sandbox. Every problem is a ValueError of one sentence, raised before any
weight is read where the files' headers show it.

Formats: LLaDA's checkpoint (arXiv 2502.09992, huggingface.co/GSAI-ML), PEFT's LoRA (2106.09685).
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model import Config, Int8Linear, Linear, LLaDA

PREFIX = "model.transformer."  # of every tensor name in a LLaDA checkpoint
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    source: str | Path,
    adapter: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    int8: bool = False,
    split: Callable[[LLaDA], None] | None = None,
) -> LLaDA:
    """Read a checkpoint, merge an adapter into it, and return the model ready for inference.

    The files are mapped and converted one tensor at a time: memory never holds two copies.
    source, adapter: a folder or a Hugging Face id
    device: default CUDA, MPS or CPU, the first there is
    dtype: default float32 on a CPU and bfloat16 elsewhere
    int8: keep all matrices but the embedding in 8 bits; LLaDA-8B takes 8.5 GB instead of 16.0
    split: deals the matrices out to processes, before they have weights (lab/parallel.py); no int8
    """
    folder, device = find_folder(source), find_device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    with torch.device("meta"):
        model = LLaDA(load_config(folder))
    shapes = {PREFIX + name: tuple(weight.shape) for name, weight in model.named_parameters()}
    files = weight_files(folder)
    check_headers(folder, files, shapes)
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, Linear)}
    if split:
        split(model)
    needed = sum(
        weight.numel() // parts_of(weight) * (1 if int8 and name in linear else dtype.itemsize)
        for name, weight in model.named_parameters()
    )
    kind = "int8 and " * int8 + str(dtype)[6:]  # without torch.
    check_memory(f"the weights of {source} in {kind}", needed, device)
    lora = read_adapter(find_folder(adapter), shapes) if adapter else {}
    for file in files:
        for name, tensor in read_tensors(file, device):
            if name in lora:  # in float32: bfloat16 would round the sum twice
                a, b, scale = lora[name]
                tensor = tensor + scale * (b.to(device) @ a.to(device))
            name = name.removeprefix(PREFIX)
            set_weight(model, name, tensor.to(dtype), int8 and name in linear)
    return model.eval()


def find_folder(source: str | Path) -> Path:
    """A folder as it is; owner/name is fetched from Hugging Face, or found in its cache."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise ValueError(
            f"no checkpoint at {source}: give a folder or a Hugging Face id, owner/name"
        )
    from huggingface_hub import snapshot_download  # half a second that a folder need not pay

    try:
        patterns = ["*.json", "*.jinja", "*.safetensors"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # the hub raises its own, the HTTP library's and the system's
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        neither = f"{source} is neither a folder here nor to be had from Hugging Face"
        raise ValueError(f"{neither}: {reason}") from error


def find_file(folder: Path, name: str, note: str = "") -> Path:
    refuse(not (folder / name).is_file(), folder, f"{name} is missing{note}")
    return folder / name


def refuse(wrong: object, where: Path, what: str) -> None:
    if wrong:
        raise ValueError(f"{where}: {what}")


def weight_files(folder: Path) -> list[Path]:
    """The one file, or the shards that an index names."""
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file():
        shards = read_json(index).get("weight_map")
        refuse(not isinstance(shards, dict) or not shards, index, "no weight_map")
        names = sorted(set(map(str, shards.values())))
    for name in names:
        refuse(Path(name).name != name, index, f"shard {name!r} is not a plain file name")
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
    note = " (only safetensors is read, never pickled weights)" if pickled else ""
    return [find_file(folder, name, note) for name in names]


def read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from None
    refuse(type(content) is not dict, file, f"expected an object, found a {type(content).__name__}")
    return content


CONFIG_KEYS = {field.name: field for field in fields(Config)}
# Switches that model.py implements one way: a checkpoint that sets one otherwise is refused.
FIXED = {
    "model_type": "llada", "block_type": "llama", "activation_type": "silu", "block_group_size": 1,
    "layer_norm_type": "rms", "layer_norm_with_affine": True, "rope_full_precision": True,
    "include_bias": False, "include_qkv_bias": False, "bias_for_layer_norm": False, "alibi": False,
    "attention_layer_norm": False, "weight_tying": False, "scale_logits": False, "rope": True,
    "input_emb_norm": False, "multi_query_attention": None, "clip_qkv": None,
}  # fmt: skip
# Keys that say nothing about inference: training, bookkeeping, settings of a switch that is off.
IGNORED = {
    "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "precision",
    "use_cache", "flash_attention", "embedding_size", "pad_token_id", "bos_token_id", "mlp_ratio",
    "alibi_bias_max", "attention_layer_norm_with_affine", "attention_dropout", "embedding_dropout",
    "residual_dropout", "init_device", "init_fn", "init_std", "init_cutoff_factor",
}  # fmt: skip


def load_config(source: str | Path) -> Config:
    """The shape of a checkpoint: config.json, unless model.py would compute something else."""
    file = find_file(find_folder(source), "config.json")
    given = read_json(file)
    given["vocab_size"] = given.get("embedding_size") or given.get("vocab_size")
    for key, value in given.items():
        if key in FIXED:
            other = f"{key} is {value!r}, but this model implements only {FIXED[key]!r}"
            refuse(value != FIXED[key], file, other)
        elif key not in CONFIG_KEYS and key not in IGNORED and not key.startswith("_"):
            unknown = f"unknown key {key} = {value!r} might change the arithmetic"
            refuse(value not in (None, False), file, unknown)
    values = {key: given[key] for key in CONFIG_KEYS if given.get(key) is not None}
    for key, field in CONFIG_KEYS.items():
        refuse(field.default is MISSING and key not in values, file, f"{key} is missing")
    for key, value in values.items():
        kind = "number" if CONFIG_KEYS[key].type is float else "whole number"
        number = type(value) is int or (type(value) is float and kind == "number")
        large = number and (value > 0 or key.endswith("_id"))  # ids: see below
        refuse(not large, file, f"{key} is {value!r}, expected a {kind} above 0")
    c = Config(**values)
    odd = f"n_heads {c.n_heads} must divide d_model {c.d_model} into even widths"
    refuse(c.d_model % (2 * c.n_heads), file, odd)
    refuse(c.n_heads % c.kv_heads, file, f"n_kv_heads {c.kv_heads} must divide n_heads {c.n_heads}")
    for key in ("mask_token_id", "eos_token_id"):
        outside = f"{key} {values[key]} lies outside the vocabulary of {c.vocab_size}"
        refuse(not 0 <= values[key] < c.vocab_size, file, outside)
    return c


def open_tensors(file: Path, device: str | torch.device = "cpu") -> safe_open:
    try:
        return safe_open(file, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or not a safetensors file: {error}") from None


def check_headers(folder: Path, files: list[Path], shapes: dict[str, tuple]) -> None:
    """Compare names, shapes and types with the model's, from the files' headers alone."""
    seen: dict[str, str] = {}
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():
                both = f"both in {seen.get(name)} and in {file.name}"
                refuse(name in seen, folder, f"tensor {name} is {both}")
                strange = f"unexpected tensor {name}, which this model does not have"
                refuse(name not in shapes, file, strange)
                seen[name], header, planned = file.name, tensors.get_slice(name), shapes[name]
                other = f"has shape {header.get_shape()}, config.json implies {list(planned)}"
                refuse(tuple(header.get_shape()) != planned, file, f"tensor {name} {other}")
                kind = f"{header.get_dtype()}, expected floating-point weights"
                floats = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
                refuse(header.get_dtype() not in floats, file, f"tensor {name} is {kind}")
    if missing := [name for name in shapes if name not in seen]:
        count = f"({len(missing)} of {len(shapes)} are)"
        raise ValueError(f"{folder}: tensor {missing[0]} is missing {count}")


def read_tensors(file: Path, device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor), refusing NaN and infinity."""
    with open_tensors(file) as tensors:
        names = list(tensors.keys())
    for name in names:
        # opened anew for each: what was read of a file stays in memory until it is closed
        with open_tensors(file, device) as tensors:
            tensor = tensors.get_tensor(name)
        # NaN is the least and the largest; looking at every number takes 15 times as long
        ends = torch.stack(tensor.aminmax()) if tensor.numel() else tensor
        refuse(not ends.isfinite().all(), file, f"tensor {name} holds NaN or infinity")
        yield name, tensor


def set_weight(model: LLaDA, name: str, tensor: Tensor, int8: bool) -> None:
    module, _, leaf = name.rpartition(".")
    if int8:
        return model.set_submodule(module, Int8Linear(tensor))
    plan = model.get_parameter(name)
    if parts_of(plan) > 1:  # every process has read the whole: each keeps its part, none sends
        from torch.distributed.tensor import distribute_tensor

        tensor = distribute_tensor(tensor, plan.device_mesh, plan.placements, src_data_rank=None)
    setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor, requires_grad=False))


def parts_of(weight: torch.nn.Parameter) -> int:
    """Over how many processes a weight is laid out: as a DTensor, if over several."""
    return weight.device_mesh.size() if hasattr(weight, "device_mesh") else 1


UNSUPPORTED = (
    "bias", "use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "rank_pattern",
    "alpha_pattern", "layer_replication",
)  # fmt: skip


def read_adapter(folder: Path, shapes: dict[str, tuple]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Read a PEFT LoRA adapter: {weight name: (A float32 [r, in], B float32 [out, r], scale)}.

    Merged, the weight is W + scale * B A.
    """
    file = find_file(folder, "adapter_config.json")
    config = read_json(file)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    numbers = type(rank) is int and rank > 0 and type(alpha) in (int, float)
    lora = numbers and config.get("peft_type") == "LORA"
    refuse(not lora, file, "expected a LoRA adapter with a rank r and lora_alpha")
    for key in UNSUPPORTED:
        value = config.get(key) or "none"
        refuse(value != "none", file, f"{key} = {value!r} is not supported")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    file = find_file(folder, "adapter_model.safetensors")
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(file, "cpu"):
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        target, half = (f"{match[1]}.weight", match[2]) if match else ("", "")
        matrix = len(shapes.get(target, ())) == 2
        refuse(not matrix, file, f"tensor {name} belongs to no weight of this model")
        (width_out, width_in), shape = shapes[target], list(tensor.shape)
        expected = [rank, width_in] if half == "A" else [width_out, rank]
        refuse(shape != expected, file, f"tensor {name} has shape {shape}, expected {expected}")
        halves.setdefault(target, {})[half] = tensor.float()
    whole = halves and all(len(pair) == 2 for pair in halves.values())
    refuse(not whole, file, "every adapted weight needs both lora_A and lora_B")
    return {target: (pair["A"], pair["B"], scale) for target, pair in halves.items()}


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of this name, or the first there is of CUDA, MPS and CPU."""
    counts = {"cuda": torch.cuda.device_count(), "mps": torch.mps.device_count(), "cpu": 1}
    kinds = [kind for kind, count in counts.items() if count]
    try:
        device = torch.device(kinds[0] if name is None else name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: cpu, cuda, cuda:1 or mps") from None
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ValueError(f"there is no device {name} here: {', '.join(kinds)}")
    return device


def check_memory(what: str, needed: float, device: torch.device) -> None:
    free = free_memory(device)
    if needed > free:
        short = f"{needed / 1e9:.3g} GB, but {device} has {free / 1e9:.3g} GB free"
        raise ValueError(f"{what} need {short}")


def free_memory(device: torch.device) -> float:
    """Bytes that an allocation can hope for; infinity where the system does not tell."""
    if device.type == "cuda":
        reserved, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved - used  # kept for the next tensors
    meminfo = Path("/proc/meminfo")  # on Linux
    text = meminfo.read_text() if meminfo.is_file() else ""
    if available := re.search(r"MemAvailable: *(\d+) kB", text):
        return int(available[1]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # on a Mac
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


class Tokenizer:
    """tokenizer.json and the chat template of a checkpoint: a folder or a Hugging Face id."""

    def __init__(self, source: str | Path):
        from tokenizers import Tokenizer as Encoder

        folder = find_folder(source)
        file = find_file(folder, "tokenizer.json")
        try:
            self.encoder = Encoder.from_file(str(file))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{file} is not a tokenizer: {error}") from None
        file, newer = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        settings = read_json(file) if file.is_file() else {}
        template = settings.get("chat_template")
        if isinstance(template, list):  # several
            template = {t.get("name"): t.get("template") for t in template}.get("default")
        self.template = newer.read_text(encoding="utf-8") if newer.is_file() else template
        # bos_token and its like, to which templates refer: strings or {"content": ...}
        tokens = {key: token for key, token in settings.items() if key.endswith("_token") and token}
        self.names = {k: t["content"] if isinstance(t, dict) else t for k, t in tokens.items()}

    def encode(self, text: str) -> list[int]:
        """Text as it stands: nothing is added in front or behind."""
        return self.encoder.encode(text, add_special_tokens=False).ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Put [{"role": ..., "content": ...}, ...] through the template, up to where it answers."""
        from jinja2 import TemplateError, sandbox

        def raise_exception(message: str):
            raise ValueError(f"the checkpoint's chat template refuses these messages: {message}")

        if not self.template:
            raise ValueError("this checkpoint has no chat template: give the prompt as raw text")
        jinja = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        jinja.globals["raise_exception"] = raise_exception
        given = self.names | {"messages": messages, "add_generation_prompt": True}
        try:
            text = jinja.from_string(self.template).render(given)
        except TemplateError as error:
            raise ValueError(f"the checkpoint's chat template fails: {error}") from None
        return self.encode(text)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.encoder.decode(ids, skip_special_tokens)


load_tokenizer = Tokenizer
