"""Write what load_weights.py reads: checkpoints, PEFT's adapters and Learn2PD's filter."""

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from families import FAMILIES, LLADA, PREFIX
from lab.files import replacing
from load_weights import CONFIG_KEYS
from model import Int8Linear, LLaDA


def save_model(model: LLaDA, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors in its family's format. dtype: default its own."""
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        lost = "a model in int8 has lost what a checkpoint holds"
        raise ValueError(f"{lost}: load it without int8 to save it")
    c = model.config
    fits = lambda family: all(getattr(c, name) == value for name, value in family.own.items())
    family = next(filter(fits, FAMILIES), None)
    if family is None:
        raise ValueError(f"no format holds qkv_bias={c.qkv_bias} with shift={c.shift}")
    config = {family.key(name): getattr(c, name) for name in CONFIG_KEYS} | family.fixed
    config |= {family.key("n_kv_heads"): c.kv_heads, "pad_token_id": c.eos_token_id}
    if family is LLADA:
        config |= {"architectures": ["LLaDAModelLM"], "embedding_size": c.vocab_size}
    if c.end_token_ids:  # of several the one that pads is the one that fills
        config["eos_token_id"] = list(c.ends)
    weights = model.named_parameters()
    tensors = {family.tensor(name): p.to("cpu", dtype or p.dtype) for name, p in weights}
    write_folder(folder, {"model.safetensors": tensors, "config.json": as_json(config)})


def save_adapter(halves: dict[str, tuple[Tensor, Tensor]], alpha: float, folder: str | Path):
    """Write a LoRA adapter in PEFT's layout.

    halves: {module name in LLaDA: (A [r, in], B [out, r])}, all of one rank r
    """
    rank = len(next(iter(halves.values()))[0])
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none"}
    config["target_modules"] = sorted({name.split(".")[-1] for name in halves})
    tensors, text = {}, as_json(config)
    for name, (a, b) in halves.items():
        adapted = f"base_model.model.{PREFIX}{name}"
        tensors |= {f"{adapted}.lora_A.weight": a, f"{adapted}.lora_B.weight": b}
    write_folder(folder, {"adapter_model.safetensors": tensors, "adapter_config.json": text})


def save_filter(parts: list[Tensor], file: str | Path) -> None:
    """Write a filter. parts: as load_filter returns them."""
    from strategies.learn2pd import FILTER_PARTS  # a system, whose file may be missing

    write_folder(Path(file).parent, {Path(file).name: dict(zip(FILTER_PARTS, parts))})


def as_json(content: dict) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def write_folder(folder: str | Path, files: dict[str, dict[str, Tensor] | str]) -> None:
    """Write {name: tensors or text}, all of them under other names before one gets its own."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for name, content in files.items():
            place = stack.enter_context(replacing(folder / name))
            if isinstance(content, str):
                place.write_text(content, encoding="utf-8")
            else:
                write_tensors(content, place)


def write_tensors(tensors: dict[str, Tensor], file: Path, notes: dict | None = None) -> None:
    """Write safetensors as other files are written: what cannot be done is an OSError."""
    try:
        save_file({key: t.detach().contiguous() for key, t in tensors.items()}, file, notes)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(code[1]), os.strerror(int(code[1]))) if code else error) from None
    file.chmod(0o644)  # the library makes it 0600, for its owner alone
