"""What the families of checkpoints, LLaDA's and Dream's, and adapters call keys and tensors.

Names are LLaDA's in all other files; here stand those of others, and what model.py implements.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from checkpoint import find_file, read_json, refuse

PREFIX = "model.transformer."  # of every tensor name in a LLaDA checkpoint


class Family(NamedTuple):
    """What checkpoints of one family call things. `field` is one of model.Config."""

    name: str
    keys: dict[str, str]  # of config.json, by field, where it is not the field's own name
    fixed: dict  # switches that model.py implements one way: one set otherwise is refused
    ignored: str  # keys that say nothing about inference here, and no other family has
    own: dict  # fields that no key says
    whole: bool  # whether every key must be there: what its absence means is not what it means here
    tensor: Callable[[str], str]  # the name in the files of a parameter of model.LLaDA

    def key(self, field: str) -> str:
        return self.keys.get(field, field)


def dream_tensor(name: str) -> str:
    *layer, module, kind = name.split(".")  # of a layer "blocks", its number
    if layer:
        return f"model.layers.{layer[1]}.{DREAM_LAYER[module]}.{kind}"
    return f"{DREAM_MODEL[module]}.{kind}"


DREAM_MODEL = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
DREAM_LAYER = {
    "attn_norm": "input_layernorm", "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj", "attn_out": "self_attn.o_proj", "ff_out": "mlp.down_proj",
    "ff_norm": "post_attention_layernorm", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
}  # fmt: skip
LLADA = Family(
    "LLaDA",
    keys={},
    fixed={
        "model_type": "llada", "block_type": "llama", "activation_type": "silu", "rope": True,
        "layer_norm_type": "rms", "layer_norm_with_affine": True, "rope_full_precision": True,
        "include_bias": False, "include_qkv_bias": False, "bias_for_layer_norm": False,
        "attention_layer_norm": False, "weight_tying": False, "scale_logits": False,
        "alibi": False, "input_emb_norm": False, "multi_query_attention": None, "clip_qkv": None,
        "block_group_size": 1,
    },
    ignored="""
        precision flash_attention embedding_size mlp_ratio alibi_bias_max embedding_dropout
        attention_layer_norm_with_affine residual_dropout init_device init_fn init_std
        init_cutoff_factor
    """,
    own={"qkv_bias": False, "shift": 0},
    whole=False,
    tensor=PREFIX.__add__,
)  # fmt: skip
DREAM = Family(
    "Dream",
    keys={
        "d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads", "mlp_hidden_size": "intermediate_size",
        "max_sequence_length": "max_position_embeddings",
    },
    fixed={
        "model_type": "Dream", "architectures": ["DreamModel"], "hidden_act": "silu",
        "tie_word_embeddings": False, "rope_scaling": None, "use_sliding_window": False,
        "use_mrope": False,
    },
    ignored="initializer_range max_window_layers sliding_window",
    own={"qkv_bias": True, "shift": 1},
    whole=True,
    tensor=dream_tensor,
)  # fmt: skip
FAMILIES = (LLADA, DREAM)
# Keys that say nothing about inference here: training, bookkeeping, how another library samples.
IGNORED = """
    architectures auto_map transformers_version torch_dtype dtype use_cache pad_token_id
    bos_token_id attention_dropout attn_implementation return_dict id2label label2id problem_type
    tokenizer_class temperature top_k top_p typical_p max_length num_beams num_beam_groups
    num_return_sequences length_penalty repetition_penalty
"""
# Others, by what their config.json says of model_type and architectures: LLaDA-MoE calls itself
# llada, and Dream's successors Dream.
FOREIGN = {
    "llada_?2": "LLaDA 2", "llada_?moe": "LLaDA-MoE", "llava": "LLaDA-V", "mmada": "MMaDA",
    "dreamforcausallm": "DreamOn or Dream-Reasoner", "sdar": "SDAR", "fast_dllm": "Fast-dLLM v2",
}  # fmt: skip


def family_of(given: dict, file: Path) -> Family:
    kind, names = given.get("model_type", "llada"), given.get("architectures")
    said = f"{kind} {names}".lower()
    looks = [name for sign, name in FOREIGN.items() if re.search(sign, said)]
    known = [family for family in FAMILIES if family.fixed["model_type"] == kind]
    what = looks[0] if looks else f"a checkpoint of {kind!r}"
    only = f"but this model implements only {' and '.join(family.name for family in FAMILIES)}"
    refuse(looks or not known, file, f"this is {what} ({names}), {only}")
    return known[0]


def read_config(folder: Path, fields: Iterable[str]) -> tuple[Family, dict]:
    """The family of a checkpoint, and the content of its config.json, of which no key asks for
    anything that model.py leaves out. fields: the names of those whose keys are understood"""
    file = find_file(folder, "config.json")
    given = read_json(file)
    family = family_of(given, file)
    rope = given.get("rope_parameters")  # where newer files have rope_theta
    if isinstance(rope, dict) and rope.get("rope_type", "default") == "default":
        rope = {key: value for key, value in rope.items() if key != "rope_type"}
        twice = f"rope_parameters {rope} contradict rope_theta {given.get('rope_theta')}"
        refuse(any(given.get(key, value) != value for key, value in rope.items()), file, twice)
        given = {key: value for key, value in given.items() if key != "rope_parameters"} | rope
    known = {*map(family.key, fields), *IGNORED.split(), *family.ignored.split()}
    for key, value in given.items():
        if key in family.fixed:
            fixed = family.fixed[key]
            other = f"{key} is {value!r}, but this model implements only {fixed!r}"
            refuse(value != fixed and (value or fixed), file, other)
        elif key not in known and not key.startswith("_"):
            refuse(value, file, f"unknown key {key} = {value!r} might change the arithmetic")
    return family, given


# --- adapters -----------------------------------------------------------------------------------

# Keys of an adapter that say nothing about inference, or that load_weights.py reads.
LORA_KEYS = set(
    """
    peft_type r lora_alpha use_rslora bias init_lora_weights task_type auto_mapping peft_version
    base_model_name_or_path revision inference_mode target_modules exclude_modules lora_dropout
    layers_to_transform layers_pattern megatron_core eva_config qalora_group_size
""".split()
)
# How A and B began. Any other way has changed the weights to which they are added.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def adapted(name: str) -> tuple[str, str]:
    """The weight to which a tensor of an adapter belongs, and which half it is: A or B."""
    match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
    return (f"{match[1]}.weight", match[2]) if match else ("", "")
