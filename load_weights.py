"""From files to a model that runs: config.json, safetensors, a LoRA adapter.

Weights are data: only safetensors is read (no pickle), and no code from a checkpoint runs. Every
problem is a ValueError of one sentence, raised before any weight is read where the files' headers
show it. Tokenizer, template and end tokens are read by checkpoint.py.

Formats: LLaDA's checkpoint (arXiv 2502.09992, huggingface.co/GSAI-ML), Dream's (2508.15487,
huggingface.co/Dream-org), PEFT's LoRA (2106.09685).
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoint import Tokenizer, find_file, find_folder, listed_ends, read_json, refuse
from families import LORA_KEYS, PLAIN_STARTS, adapted, read_config
from model import Config, Int8Linear, Linear, LLaDA

load_tokenizer = Tokenizer
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
    config, files = load_config(folder), weight_files(folder)
    family, headers = read_config(folder, CONFIG_KEYS)[0], read_headers(files)
    key = family.key("n_layers")
    more = f"{key} is {config.n_layers}, but there are only {len(headers)} tensors"
    refuse(config.n_layers > len(headers), folder / "config.json", more)  # a million take minutes
    with torch.device("meta"):
        model = LLaDA(config)
    names = {family.tensor(name): name for name, _ in model.named_parameters()}
    shapes = {name: tuple(model.get_parameter(own).shape) for name, own in names.items()}
    check_headers(folder, headers, shapes)
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
            weight, of = tensor.to(dtype), name in lora and " with the adapter" or ""
            if weight is not tensor or of:  # a smaller range, or a sum
                check_finite(weight, file, f"{name}{of} in {str(dtype)[6:]}")
            set_weight(model, names[name], weight, int8 and names[name] in linear)
    return model.eval()


def weight_files(folder: Path) -> list[Path]:
    """The one file, or, without it, the shards that an index names."""
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file() and not (folder / names[0]).is_file():
        shards = read_json(index).get("weight_map")
        refuse(not isinstance(shards, dict) or not shards, index, "no weight_map")
        for name in shards.values():
            plain = isinstance(name, str) and name and Path(name).name == name
            refuse(not plain, index, f"shard {name!r} is not a plain file name")
        names = sorted(set(shards.values()))
    return [find_file(folder, name, pickled(folder)) for name in names]


def pickled(folder: Path) -> str:
    """A note where there are weights that are not read."""
    there = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
    return " (only safetensors is read, never pickled weights)" if there else ""


DERIVED = ("end_token_ids", "qkv_bias", "shift")  # fields that no one key says
CONFIG_KEYS = {field.name: field for field in fields(Config) if field.name not in DERIVED}
WHOLE = 2**24  # the largest whole number that can be meant
RANGES = {"rope_theta": (1, 1e12), "rms_norm_eps": (1e-12, 1)}  # of others from 1


def load_config(source: str | Path) -> Config:
    """The shape of a checkpoint: config.json, unless model.py would compute something else."""
    folder = find_folder(source)
    file, (family, given) = folder / "config.json", read_config(folder, CONFIG_KEYS)
    first, more = listed_ends(folder, "config.json"), listed_ends(folder, "generation_config.json")
    ends = {*first, *more}
    fills = [i for i in first or more if i == given.get("pad_token_id")] or first or more or [None]
    given |= {"vocab_size": given.get("embedding_size") or given.get("vocab_size")}
    given |= {"eos_token_id": fills[0]}
    values = {field: given.get(family.key(field)) for field in CONFIG_KEYS}
    values = {field: value for field, value in values.items() if value is not None}
    for name, field in CONFIG_KEYS.items():
        needed = field.default is MISSING or family.whole
        refuse(needed and name not in values, file, f"{family.key(name)} is missing")
    for name, value in values.items():
        kinds = (int, float) if CONFIG_KEYS[name].type is float else (int,)
        low, high = RANGES.get(name, (-math.inf if name.endswith("_id") else 1, WHOLE))
        fits = type(value) in kinds and low <= value <= high  # of ids more below
        kind = f"{'number' if float in kinds else 'whole number'} of {max(low, 0)} to {high}"
        refuse(not fits, file, f"{family.key(name)} is {value!r}, expected a {kind}")
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        ends |= Tokenizer(folder).ends  # also what the template writes behind an answer
    others = tuple(sorted(ends - {values["eos_token_id"]}))
    c = Config(**values, **family.own, end_token_ids=others)
    width, heads, groups = (family.key(name) for name in ("d_model", "n_heads", "n_kv_heads"))
    odd = f"{heads} {c.n_heads} must divide {width} {c.d_model} into even widths"
    refuse(c.d_model % (2 * c.n_heads), file, odd)
    refuse(c.n_heads % c.kv_heads, file, f"{groups} {c.kv_heads} must divide {heads} {c.n_heads}")
    for key, ids in {"mask_token_id": [c.mask_token_id], "eos_token_id": c.ends}.items():
        outside = f"lies outside the vocabulary of {c.vocab_size}"
        for i in ids:
            refuse(not 0 <= i < c.vocab_size, file, f"{key} {i} {outside}")
    both = f"mask_token_id {c.mask_token_id} is an end token, too"
    refuse(c.mask_token_id in c.ends, file, both)
    return c


def open_tensors(file: Path, device: str | torch.device = "cpu") -> safe_open:
    try:
        return safe_open(file, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        refuse(True, file, f"is truncated or not a safetensors file: {error}")


FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them


def read_headers(files: list[Path]) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """{tensor: (file, shape)}, from the files' headers alone; ValueError for types not read."""
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():
                both = f"both in {found[name][0].name} and in {file.name}" if name in found else ""
                refuse(both, file.parent, f"tensor {name} is {both}")
                header = tensors.get_slice(name)
                kind = f"{header.get_dtype()}, expected one of {', '.join(FLOATS)}"
                refuse(header.get_dtype() not in FLOATS, file, f"tensor {name} is {kind}")
                found[name] = file, tuple(header.get_shape())
    return found


def check_headers(folder: Path, headers: dict, shapes: dict[str, tuple]) -> None:
    """Compare names and shapes with the model's."""
    for name, (file, shape) in headers.items():
        strange = f"unexpected tensor {name}, which this model does not have"
        refuse(name not in shapes, file, strange)
        other = f"has shape {list(shape)}, config.json implies {list(shapes[name])}"
        refuse(shape != shapes[name], file, f"tensor {name} {other}")
    missing = [name for name in shapes if name not in headers]
    count = f"({len(missing)} of {len(shapes)} are)"
    refuse(missing, folder, f"tensor {missing[0] if missing else ''} is missing {count}")


def read_tensors(file: Path, device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor), refusing NaN and infinity."""
    for name in read_headers([file]):
        # opened anew for each: what was read of a file stays in memory until it is closed
        with open_tensors(file, device) as tensors:
            tensor = tensors.get_tensor(name)
        check_finite(tensor, file, name)
        yield name, tensor


def check_finite(tensor: Tensor, file: Path, name: str) -> None:
    # NaN is the least and the largest; looking at every number takes 15 times as long
    ends = torch.stack(tensor.aminmax()) if tensor.numel() else tensor
    refuse(not ends.isfinite().all(), file, f"tensor {name} holds NaN or infinity")


def set_weight(model: LLaDA, name: str, tensor: Tensor, int8: bool) -> None:
    module, _, leaf = name.rpartition(".")
    if int8:
        bias = model.get_submodule(module).bias  # which may be read before or after
        return model.set_submodule(module, Int8Linear(tensor, bias))
    plan = model.get_parameter(name)
    if parts_of(plan) > 1:  # every process has read the whole: each keeps its part, none sends
        from torch.distributed.tensor import distribute_tensor

        tensor = distribute_tensor(tensor, plan.device_mesh, plan.placements, src_data_rank=None)
    setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor, requires_grad=False))


def parts_of(weight: torch.nn.Parameter) -> int:
    """Over how many processes a weight is laid out: as a DTensor, if over several."""
    return weight.device_mesh.size() if hasattr(weight, "device_mesh") else 1


def read_adapter(folder: Path, shapes: dict[str, tuple]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Read a PEFT LoRA adapter: {weight name: (A float32 [r, in], B float32 [out, r], scale)}.

    Merged, the weight is W + scale * B A.
    """
    file = find_file(folder, "adapter_config.json")
    config = read_json(file)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    numbers = type(rank) is int and type(alpha) in (int, float)
    lora = numbers and 0 < rank <= WHOLE and 0 < alpha <= WHOLE
    lora = lora and config.get("peft_type") == "LORA"
    refuse(not lora, file, "expected a LoRA adapter with a rank r and lora_alpha, above 0")
    for key, value in config.items():
        refuse(value and key not in LORA_KEYS, file, f"{key} = {value!r} is not supported")
    for key, known in {"bias": ("none", None), "init_lora_weights": PLAIN_STARTS}.items():
        value = config.get(key)
        refuse(value not in known, file, f"{key} = {value!r} is not supported")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    file = find_file(folder, "adapter_model.safetensors", pickled(folder))
    halves: dict[str, dict[str, Tensor]] = {}
    for name, (_, shape) in read_headers([file]).items():
        target, half = adapted(name)
        state = " (a saved state of training: save_pretrained writes an adapter)"
        strange = f"tensor {name} belongs to no weight of this model{state * ('.default' in name)}"
        refuse(len(shapes.get(target, ())) != 2, file, strange)
        width_out, width_in = shapes[target]
        expected = (rank, width_in) if half == "A" else (width_out, rank)
        other = f"has shape {list(shape)}, expected {list(expected)}"
        refuse(shape != expected, file, f"tensor {name} {other}")
        halves.setdefault(target, {})[half] = torch.empty(0)
    whole = halves and all(len(pair) == 2 for pair in halves.values())
    refuse(not whole, file, "every adapted weight needs both lora_A and lora_B")
    for name, tensor in read_tensors(file, "cpu"):
        target, half = adapted(name)
        halves[target][half] = tensor.float()
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
