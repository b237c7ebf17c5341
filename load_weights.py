"""From files to a model that runs: config.json, safetensors and a LoRA adapter, tokenizer.json and the chat template; and back.

A checkpoint is a folder, or the name of one on Hugging Face. Weights are data: only safetensors is read (no pickle), no code from a
checkpoint runs, and its template is rendered in a sandbox. Every problem is a ValueError of one sentence, raised before any weight is read
where the files' headers show it.

Formats: LLaDA's checkpoint (arXiv 2502.09992, huggingface.co/GSAI-ML), PEFT's LoRA adapter (2106.09685).
"""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import Config, Int8Linear, Linear, LLaDA

PREFIX = "model.transformer."  # of every tensor name in a LLaDA checkpoint
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The switches of LLaDA's config that model.py implements one way. A checkpoint that sets one otherwise computes something else: refused.
FIXED = {
    "model_type": "llada", "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "layer_norm_with_affine": True,
    "bias_for_layer_norm": False, "rope": True, "rope_full_precision": True, "include_bias": False, "include_qkv_bias": False,
    "attention_layer_norm": False, "weight_tying": False, "scale_logits": False, "input_emb_norm": False, "alibi": False,
    "block_group_size": 1, "multi_query_attention": None, "clip_qkv": None,
}  # fmt: skip
# Keys that say nothing about inference: training, bookkeeping, or settings of a switch that FIXED holds off.
IGNORED = {
    "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "precision", "use_cache", "flash_attention",
    "embedding_size", "pad_token_id", "bos_token_id", "mlp_ratio", "alibi_bias_max", "attention_layer_norm_with_affine",
    "attention_dropout", "embedding_dropout", "residual_dropout", "init_device", "init_fn", "init_std", "init_cutoff_factor",
}  # fmt: skip


def load_model(
    source: str | Path,
    adapter: str | Path | None = None,
    device=None,
    dtype: torch.dtype | None = None,
    int8: bool = False,
    split: Callable[[LLaDA], None] | None = None,
) -> LLaDA:
    """Read a checkpoint, merge an adapter into it, and return the model ready for inference.

    source, adapter: a folder or a Hugging Face id. device: default CUDA, MPS or CPU, the first there is. dtype: default float32 on a
    CPU and bfloat16 elsewhere. Weights are mapped from the files and converted one tensor at a time, so the host never holds two copies.
    int8: keep all matrices but the embedding in 8 bits; LLaDA-8B takes 8.5 GB instead of 16.0.
    split: lays the matrices out over several processes while they have no weights yet (lab/parallel.py); not with int8.
    """
    folder = find_folder(source)
    device = find_device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    config = read_config(folder)
    with torch.device("meta"):
        model = LLaDA(config)
    shapes = {PREFIX + name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    files = weight_files(folder)
    check_headers(folder, files, shapes)
    in_int8 = {
        PREFIX + name + ".weight"
        for name, module in model.named_modules()
        if int8 and isinstance(module, Linear)
    }
    if split:
        split(model)
    held = {PREFIX + name: parts_of(parameter) for name, parameter in model.named_parameters()}
    needed = sum(
        math.prod(shape) // held[name] * (1 if name in in_int8 else dtype.itemsize)
        for name, shape in shapes.items()
    )
    check_memory(f"the weights of {source} in {'int8 and ' * int8}{str(dtype)[6:]}", needed, device)
    adapter_folder = adapter and find_folder(adapter)
    lora = read_adapter(adapter_folder, shapes) if adapter_folder else {}
    for file in files:
        for name, tensor in read_tensors(file, device):
            if name in lora:
                a, b, scale = lora[name]
                tensor = tensor.float() + scale * (
                    b.to(device) @ a.to(device)
                )  # in float32: bfloat16 would round the sum twice
            set_weight(model, name.removeprefix(PREFIX), tensor.to(dtype), name in in_int8)
    return model.eval()


def load_config(source: str | Path) -> Config:
    """The shape of a checkpoint, from its config.json alone: a folder or a Hugging Face id."""
    return read_config(find_folder(source))


def save_model(model: LLaDA, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors in LLaDA's format, each under a temporary name first. dtype: default the model's."""
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise ValueError(
            "a model in int8 has lost what LLaDA's format holds: load it without int8 to save it"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        PREFIX + name: p.detach().to("cpu", dtype or p.dtype).contiguous()
        for name, p in model.named_parameters()
    }
    config = {name: getattr(model.config, name) for name in CONFIG_KEYS} | FIXED
    config |= {
        "architectures": ["LLaDAModelLM"],
        "embedding_size": model.config.vocab_size,
        "pad_token_id": model.config.eos_token_id,
    }
    config["n_kv_heads"] = model.config.kv_heads
    write_folder(folder, "model.safetensors", tensors, "config.json", config)


def save_adapter(
    halves: dict[str, tuple[Tensor, Tensor]], alpha: float, folder: str | Path
) -> None:
    """Write a LoRA adapter in PEFT's layout. halves: {module name in LLaDA: (A [r, in], B [out, r])}, all of one rank r."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank = next(iter(halves.values()))[0].shape[0]
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-1] for name in halves}),
    }
    tensors = {
        f"base_model.model.{PREFIX}{name}.lora_{half}.weight": tensor.detach().contiguous()
        for name, pair in halves.items()
        for half, tensor in zip("AB", pair)
    }
    write_folder(folder, "adapter_model.safetensors", tensors, "adapter_config.json", config)


def write_folder(
    folder: Path, weights: str, tensors: dict[str, Tensor], description: str, config: dict
) -> None:
    """Write both files under temporary names, then rename them: a killed run leaves whole files."""
    save_file(tensors, folder / f"{weights}.tmp")
    (folder / f"{weights}.tmp").chmod(0o644)  # the library makes it 0600, for its owner alone
    (folder / f"{description}.tmp").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    for name in (weights, description):
        os.replace(folder / f"{name}.tmp", folder / name)


# --- finding files ---------------------------------------------------------------------------------------------------------------------


def find_folder(source: str | Path) -> Path:
    """A folder as it is; anything of the form owner/name is fetched from Hugging Face, or found in its cache."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise ValueError(
            f"no checkpoint at {source}: give a folder or a Hugging Face id like GSAI-ML/LLaDA-8B-Instruct"
        )
    from huggingface_hub import snapshot_download  # half a second that a local folder need not pay

    try:
        return Path(
            snapshot_download(str(source), allow_patterns=["*.json", "*.jinja", "*.safetensors"])
        )
    except Exception as error:  # the hub raises its own, the HTTP library's and the system's
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{source} is neither a folder here nor to be had from Hugging Face: {reason}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index}: no weight_map")
        names = sorted(set(map(str, shards.values())))
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{index}: shard {outside[0]!r} is not a plain file name")
    else:
        names = ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
            raise ValueError(
                f"{folder}: {name} is missing"
                + (" (only safetensors is read, never pickled weights)" if pickled else "")
            )
    return [folder / name for name in names]


def read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file.parent}: {file.name} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object, found a {type(content).__name__}")
    return content


# --- the configuration -----------------------------------------------------------------------------------------------------------------

CONFIG_KEYS = {field.name: field for field in fields(Config)}


def read_config(folder: Path) -> Config:
    """Translate config.json; refuse whatever model.py would compute differently."""
    file, given = folder / "config.json", read_json(folder / "config.json")
    given["vocab_size"] = given.get("embedding_size") or given.get("vocab_size")
    for key, value in given.items():
        if key in FIXED and value != FIXED[key]:
            raise ValueError(
                f"{file}: {key} is {value!r}, but this model implements only {FIXED[key]!r}"
            )
        known = key in CONFIG_KEYS or key in FIXED or key in IGNORED or key.startswith("_")
        if not known and value not in (None, False):
            raise ValueError(
                f"{file}: unknown key {key} = {value!r} might change the arithmetic, which this model would not follow"
            )
    values = {}
    for key, field in CONFIG_KEYS.items():
        value = given.get(key)
        if value is None and field.default is MISSING:
            raise ValueError(f"{file}: {key} is missing")
        if value is not None:
            real = field.type is float
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float) if real else int)
                or value < 0
            ):
                raise ValueError(
                    f"{file}: {key} is {value!r}, expected a {'number' if real else 'whole number'} of at least 0"
                )
            values[key] = value
    config = Config(**values)
    sizes = (
        "d_model",
        "n_layers",
        "n_heads",
        "mlp_hidden_size",
        "vocab_size",
        "max_sequence_length",
        "kv_heads",
        "rope_theta",
    )
    for size in sizes:
        if not getattr(config, size):
            raise ValueError(f"{file}: {size} is 0")
    if config.d_model % (2 * config.n_heads):
        raise ValueError(
            f"{file}: n_heads {config.n_heads} must divide d_model {config.d_model} into even widths"
        )
    if config.n_heads % config.kv_heads:
        raise ValueError(
            f"{file}: n_kv_heads {config.kv_heads} must divide n_heads {config.n_heads}"
        )
    for key in ("mask_token_id", "eos_token_id"):
        if getattr(config, key) >= config.vocab_size:
            raise ValueError(
                f"{file}: {key} {getattr(config, key)} lies outside the vocabulary of {config.vocab_size}"
            )
    return config


# --- tensors ---------------------------------------------------------------------------------------------------------------------------


def open_tensors(file: Path, device="cpu"):
    try:
        return safe_open(file, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or not a safetensors file: {error}") from None


def check_headers(folder: Path, files: list[Path], expected: dict[str, tuple]) -> None:
    """Compare names, shapes and types with the model's, from the files' headers alone."""
    seen = {}
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():
                if name in seen:
                    raise ValueError(
                        f"{folder}: tensor {name} is both in {seen[name]} and in {file.name}"
                    )
                if name not in expected:
                    raise ValueError(
                        f"{file}: unexpected tensor {name}, which this model does not have"
                    )
                part = tensors.get_slice(name)
                if tuple(part.get_shape()) != expected[name]:
                    raise ValueError(
                        f"{file}: tensor {name} has shape {part.get_shape()}, config.json implies {list(expected[name])}"
                    )
                if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    raise ValueError(
                        f"{file}: tensor {name} is {part.get_dtype()}, expected floating-point weights"
                    )
                seen[name] = file.name
    if missing := [name for name in expected if name not in seen]:
        raise ValueError(
            f"{folder}: tensor {missing[0]} is missing ({len(missing)} of {len(expected)} are)"
        )


def read_tensors(file: Path, device):
    """Yield (name, tensor) straight from the mapped file, refusing NaN and infinity.

    The file is mapped anew for each tensor: the pages of a mapping stay in memory until it is closed, which would be the whole file's.
    """
    with open_tensors(file) as tensors:
        names = list(tensors.keys())
    for name in names:
        with open_tensors(file, device) as tensors:
            tensor = tensors.get_tensor(name)
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: tensor {name} holds NaN or infinity")
        yield name, tensor


FILTER_PARTS = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")


def load_filter(source: str | Path) -> list[Tensor]:
    """Learn2PD's filter: the FILTER_PARTS, float32 [k, k], [k], [k, k], [k], for blocks of k tokens."""
    if not Path(source).is_file():
        raise ValueError(f"there is no filter {source}: train one by python -m lab.train filter")
    parts = dict(read_tensors(Path(source), "cpu"))
    shapes = [tuple(parts[name].shape) for name in FILTER_PARTS if name in parts]
    k = shapes[0][0] if shapes and shapes[0] else 0
    if set(parts) != set(FILTER_PARTS) or k < 1 or shapes != [(k, k), (k,)] * 2:
        raise ValueError(
            f"filter {source} does not hold just {', '.join(FILTER_PARTS)} of shapes [k, k], [k], [k, k], [k]"
        )
    return [parts[name].float() for name in FILTER_PARTS]


def save_filter(parts: list[Tensor], file: str | Path) -> None:
    """Write a filter under a temporary name, then rename it. parts: as load_filter returns them."""
    temporary = f"{file}.tmp"
    save_file(
        {name: part.detach().contiguous() for name, part in zip(FILTER_PARTS, parts)}, temporary
    )
    Path(temporary).chmod(0o644)  # the library makes it 0600
    os.replace(temporary, file)


def set_weight(model: LLaDA, name: str, tensor: Tensor, int8: bool) -> None:
    module, _, leaf = name.rpartition(".")
    if int8:
        model.set_submodule(module, Int8Linear(tensor))
        return
    planned = model.get_parameter(name)
    if (
        parts_of(planned) > 1
    ):  # every process has read the whole: each keeps its part, and nothing is sent
        from torch.distributed.tensor import distribute_tensor

        tensor = distribute_tensor(
            tensor, planned.device_mesh, planned.placements, src_data_rank=None
        )
    setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor, requires_grad=False))


def parts_of(parameter: torch.nn.Parameter) -> int:
    """Over how many processes a weight is laid out."""
    return (
        parameter.device_mesh.size() if hasattr(parameter, "device_mesh") else 1
    )  # a DTensor, whose import costs seconds


def read_adapter(folder: Path, shapes: dict[str, tuple]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A PEFT LoRA adapter as {weight name: (A float32 [r, in], B float32 [out, r], scale)}; merged, the weight is W + scale * B A."""
    file, config = folder / "adapter_config.json", read_json(folder / "adapter_config.json")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if (
        config.get("peft_type") != "LORA"
        or not isinstance(rank, int)
        or rank < 1
        or not isinstance(alpha, (int, float))
    ):
        raise ValueError(f"{file}: expected a LoRA adapter with a rank r and lora_alpha")
    for key in (
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layer_replication",
    ):
        if config.get(key):
            raise ValueError(f"{file}: {key} = {config[key]!r} is not supported")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{file}: bias = {config['bias']!r} is not supported")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ValueError(f"{folder}: adapter_model.safetensors is missing")
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(file, "cpu"):
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        target = match and match[1] + ".weight"
        if target not in shapes:
            raise ValueError(f"{file}: tensor {name} belongs to no weight of this model")
        out_width, in_width = shapes[target]
        expected = (rank, in_width) if match[2] == "A" else (out_width, rank)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{file}: tensor {name} has shape {list(tensor.shape)}, expected {list(expected)}"
            )
        halves.setdefault(target, {})[match[2]] = tensor.float()
    if not halves or any(len(half) != 2 for half in halves.values()):
        raise ValueError(f"{file}: every adapted weight needs both lora_A and lora_B")
    return {target: (half["A"], half["B"], scale) for target, half in halves.items()}


# --- the device ------------------------------------------------------------------------------------------------------------------------


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of this name, or the first there is of CUDA, MPS and CPU."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name is None:
        return torch.device(next(kind for kind in there if there[kind]))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: cpu, cuda, cuda:1 or mps") from None
    if not there.get(device.type) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"there is no device {name} here: {', '.join(kind for kind in there if there[kind])}"
        )
    return device


def free_memory(device: torch.device) -> float:
    """Bytes that an allocation can hope for; infinity where the system does not tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )  # by PyTorch, for the next tensors
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        line = next(
            line
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable")
        )
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return math.inf


def check_memory(what: str, needed: float, device: torch.device) -> None:
    free = free_memory(device)
    if needed > free:
        raise ValueError(
            f"{what} need {needed / 1e9:.3g} GB, but {device} has {free / 1e9:.3g} GB free"
        )


# --- text ------------------------------------------------------------------------------------------------------------------------------


class Tokenizer:
    """tokenizer.json and the chat template of a checkpoint."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer as Encoder

        if not (folder / "tokenizer.json").is_file():
            raise ValueError(f"{folder}: tokenizer.json is missing")
        try:
            self.encoder = Encoder.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{folder / 'tokenizer.json'} is not a tokenizer: {error}") from None
        settings = folder / "tokenizer_config.json"
        settings = read_json(settings) if settings.is_file() else {}
        template = settings.get("chat_template")
        if isinstance(template, list):  # several named templates
            template = next(
                (t.get("template") for t in template if t.get("name") == "default"), None
            )
        if (folder / "chat_template.jinja").is_file():  # where newer checkpoints keep it
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self.template = template
        # bos_token and its like, as strings or as {"content": ...}; templates refer to them
        self.names = {
            k: v["content"] if isinstance(v, dict) else v
            for k, v in settings.items()
            if k.endswith("_token") and v
        }

    def encode(self, text: str) -> list[int]:
        """Text as it stands: nothing is added in front or behind."""
        return self.encoder.encode(text, add_special_tokens=False).ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Messages [{"role": "user", "content": ...}, ...] through the chat template, up to where the assistant's answer begins."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if not self.template:
            raise ValueError("this checkpoint has no chat template: give the prompt as raw text")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse_messages
        try:
            text = environment.from_string(self.template).render(
                messages=messages, add_generation_prompt=True, **self.names
            )
        except TemplateError as error:
            raise ValueError(f"the checkpoint's chat template fails: {error}") from None
        return self.encode(text)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.encoder.decode(ids, skip_special_tokens)


def refuse_messages(message: str):
    raise ValueError(f"the checkpoint's chat template refuses these messages: {message}")


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint: a folder or a Hugging Face id."""
    return Tokenizer(find_folder(source))
