"""Checkpoints there and back, adapters merged, and every way a file can be wrong: one sentence, before any work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import load_weights
from conftest import EOS, LORA, MASK, VOCABULARY, adapter_of, edit, random_model, random_prompt
from families import PREFIX
from lab import command_line
from lab.save import save_adapter, save_model
from load_weights import load_config, load_model
from model import Int8Linear, Linear

ROOT = Path(__file__).parent.parent


def same_weights(one, two) -> bool:
    return all(a.equal(b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def edit_tensors(folder, change) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# LLaDA-8B's config.json as it is released.
RELEASED = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"], "attention_dropout": 0.0,
    "attention_layer_norm": False, "attention_layer_norm_with_affine": True, "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig"},
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": 4096, "embedding_dropout": 0.0,
    "embedding_size": 126464, "eos_token_id": 126081, "flash_attention": False, "include_bias": False, "include_qkv_bias": False,
    "init_cutoff_factor": None, "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False,
    "layer_norm_type": "rms", "layer_norm_with_affine": True, "mask_token_id": 126336, "max_sequence_length": 4096,
    "mlp_hidden_size": 12288, "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": 32, "n_kv_heads": 32,
    "n_layers": 32, "pad_token_id": 126081, "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-05, "rope": True,
    "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False, "transformers_version": "4.46.3", "use_cache": False,
    "vocab_size": 126464, "weight_tying": False,
}  # fmt: skip


# --- what works ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_a_saved_model_loads_as_it_was(tmp_path, n_kv_heads):
    """Would catch a tensor or a config key that is lost on the way to the disk and back."""
    model = random_model(3, n_kv_heads=n_kv_heads)
    save_model(model, tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder", device="cpu")
    assert loaded.config == model.config and same_weights(loaded, model)
    assert {file.name for file in (tmp_path / "new" / "folder").iterdir()} == {"config.json", "model.safetensors"}


def test_the_file_has_the_names_and_keys_of_llada(saved):
    """Would catch a checkpoint that only this program can read."""
    names = set(load_file(saved / "model.safetensors"))
    assert {"model.transformer.wte.weight", "model.transformer.ln_f.weight", "model.transformer.ff_out.weight"} < names
    layer = {name.split(".", 4)[4] for name in names if name.startswith("model.transformer.blocks.1.")}
    leaves = ["attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]
    assert layer == {leaf + ".weight" for leaf in leaves}
    golden = json.loads((ROOT / "tests" / "goldens" / "a" / "config.json").read_text())
    assert set(golden) - {"mlp_ratio"} <= set(json.loads((saved / "config.json").read_text()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_off_by_half_a_step_at_most(saved, dtype):
    """Would catch a scale over the wrong dimension, a matrix that stays as it was, and one that loses its sign or its largest value."""
    model, plain = load_model(saved, device="cpu", dtype=dtype, int8=True), load_model(saved, device="cpu")
    names = [name for name, module in plain.named_modules() if isinstance(module, Linear)]
    assert len(names) == 7 * 2 + 1
    for name in names:
        matrix, weight = model.get_submodule(name), plain.get_submodule(name).weight
        assert isinstance(matrix, Int8Linear) and matrix.weight.dtype == torch.int8 and matrix.scale.dtype == torch.float32
        step = weight.abs().amax(1, keepdim=True) / 127
        rounding = 0.5 if dtype == torch.float32 else 1.5  # the weight was rounded to bfloat16 before
        assert ((matrix.weight * matrix.scale[:, None].float() - weight).abs() <= rounding * step + 1e-7).all()
    ids = torch.tensor([random_prompt(0, 12)])
    exact, close = plain(ids).log_softmax(-1), model(ids).float().log_softmax(-1)
    assert 0 < (exact - close).abs().mean() < 0.1 * exact.std()


def test_int8_computes_with_what_it_holds():
    """Would catch a product that is scaled by columns, and a row of zeros that becomes NaN."""
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    matrix, x = Int8Linear(weight), torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(matrix(x), x @ (matrix.weight * matrix.scale[:, None]).T, atol=1e-6) and (matrix(x)[:, 2] == 0).all()
    assert torch.allclose(matrix(x), x @ weight.T, atol=0.1) and not torch.equal(matrix(x), x @ weight.T)


def test_int8_needs_less_memory_and_is_not_saved(saved, tmp_path, monkeypatch):
    """Would catch a check that counts the bytes of the file, an adapter that is dropped, and a checkpoint without its matrices."""
    model = load_model(saved, device="cpu", int8=True)
    held = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    plain = sum(p.nbytes for p in load_model(saved, device="cpu").parameters())
    assert held < 0.45 * plain  # of so small a model the embedding and the scales are a large part
    with pytest.raises(ValueError, match="load it without int8 to save it"):
        save_model(model, tmp_path / "copy")
    monkeypatch.setattr(load_weights, "free_memory", lambda device: plain / 2)
    load_model(saved, device="cpu", int8=True)
    with pytest.raises(ValueError, match="in float32 need"):
        load_model(saved, device="cpu")
    monkeypatch.setattr(load_weights, "free_memory", lambda device: 0)
    with pytest.raises(ValueError, match="in int8 and float32 need"):
        load_model(saved, device="cpu", int8=True)


def test_int8_is_of_the_merged_weights(saved, tmp_path):
    """Would catch an adapter that is added to what has been rounded, or is left out."""
    model = random_model(0)
    halves = {"blocks.0.q_proj": (torch.randn(2, 32), torch.randn(32, 2))}
    save_adapter(halves, 2.0, tmp_path / "lora")
    merged = load_model(saved, tmp_path / "lora", device="cpu")
    model = load_model(saved, tmp_path / "lora", device="cpu", int8=True)
    assert torch.equal(model.blocks[0].q_proj.weight, Int8Linear(merged.blocks[0].q_proj.weight).weight)


def test_the_config_of_llada_8b_is_understood(tmp_path):
    """Would catch a key of the released config.json that is refused, and a parameter count other than the published one."""
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    config = load_config(tmp_path)
    assert (config.d_model, config.kv_heads, config.head_width, config.vocab_size) == (4096, 32, 128, 126464)
    with torch.device("meta"):
        assert sum(p.numel() for p in load_weights.LLaDA(config).parameters()) == 8_015_581_184


def test_shards_load_like_one_file(checkpoint, saved):
    """Would catch shards that are read twice, or not at all."""
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, checkpoint / f"part-{number}.safetensors")
    (checkpoint / "model.safetensors").unlink()
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same_weights(load_model(checkpoint, device="cpu"), load_model(saved, device="cpu"))
    (checkpoint / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match="part-1.safetensors is missing"):
        load_model(checkpoint)


def test_weights_come_in_the_dtype_asked_for(saved, tmp_path):
    """Would catch weights that stay in the dtype of the file."""
    assert load_model(saved, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16
    save_model(random_model(0), tmp_path, dtype=torch.bfloat16)
    rounded = load_model(tmp_path, device="cpu")
    assert rounded.dtype == torch.float32 and same_weights(rounded, random_model(0).bfloat16().float())


@pytest.mark.parametrize("config, scale", [({}, 2.0), ({"use_rslora": True}, 6 / 3**0.5)])
def test_a_merged_adapter_equals_the_unmerged_one(saved, tmp_path, config, scale):
    """Would catch A and B swapped or transposed, a wrong scale, and an adapter that is loaded but not applied."""
    plain = load_model(saved, device="cpu")
    halves = adapter_of(tmp_path / "lora", plain, **config)
    ids = torch.tensor([random_prompt(0, 12)])
    before = plain(ids)
    for name, (a, b) in halves.items():
        low_rank = lambda module, inputs, output, a=a, b=b: output + scale * (inputs[0] @ a.T) @ b.T
        plain.get_submodule(name).register_forward_hook(low_rank)
    merged = load_model(saved, adapter=tmp_path / "lora", device="cpu")
    torch.testing.assert_close(merged(ids), plain(ids), rtol=1e-4, atol=1e-4)
    assert (merged(ids) - before).abs().max() > 0.1


def test_an_adapter_is_added_before_anything_is_rounded(saved, tmp_path):
    """Would catch a product or a sum in bfloat16."""
    plain = load_model(saved, device="cpu").blocks[0].q_proj.weight
    a, b = adapter_of(tmp_path / "lora", random_model(0))["blocks.0.q_proj"]
    merged = load_model(saved, adapter=tmp_path / "lora", device="cpu", dtype=torch.bfloat16)
    assert merged.blocks[0].q_proj.weight.equal((plain + 2.0 * (b @ a)).bfloat16())


# --- the size of LLaDA-8B ------------------------------------------------------------------------------------------------------------


def write_zeros(shapes, file) -> None:
    """Bfloat16 zeros as a safetensors file with a hole for data: it takes no time and no room on the disk, but all its memory when read."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)


def two_layers(saved, folder, **sizes) -> Path:
    """LLaDA-8B's config cut to two layers, the 40 tokens of `saved` and these sizes, with zeros in two shards."""
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    ids = {"vocab_size": VOCABULARY, "embedding_size": VOCABULARY, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": EOS}
    (folder / "config.json").write_text(json.dumps(RELEASED | ids | {"n_layers": 2} | sizes))
    with torch.device("meta"):
        shapes = {PREFIX + name: p.shape for name, p in load_weights.LLaDA(load_config(folder)).named_parameters()}
    weight_map = {name: f"model-{'blocks' if '.blocks.' in name else 'rest'}.safetensors" for name in shapes}
    for file in set(weight_map.values()):
        write_zeros({name: shape for name, shape in shapes.items() if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="no peak of a process's memory")
def test_large_layers_are_read_shard_by_shard_and_decode(saved, tmp_path):
    """Would catch a loader that holds a shard beside the weights made of it, two copies of the weights, and float32 on the way.

    Beside the weights the largest matrix may be there six times: mapped, searched for NaN, rounded to 8 bits. A shard would be more than eight.
    """
    half_as_wide = {"d_model": 2048, "mlp_hidden_size": 6144, "n_heads": 16, "n_kv_heads": 16}  # as LLaDA-8B
    folder = two_layers(saved, tmp_path / "large", **half_as_wide)
    sizes = [file.stat().st_size / 1e6 for file in folder.glob("*.safetensors")]
    matrix = 6144 * 2048 * 2 / 1e6
    assert len(sizes) == 2 and 210 < sum(sizes) < 225 and max(sizes) > 8 * matrix
    flags = "--prompt=abc --gen-length=4 --block-length=2 --threshold=0 --eos=suppress --device=cpu --dtype=bfloat16 --json".split()
    runs = [["--model", str(saved), *flags], ["--model", str(folder), *flags, "--int8"], ["--model", str(folder), *flags]]
    code = f"from lab import command_line\nfor run in {runs}: command_line.main(run)"  # a peak only grows: the smallest first
    alone = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed goes back to the system
    apart = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", code]  # Linux counts the peak of whoever starts a process as its own
    run = subprocess.run(apart, capture_output=True, text=True, env=os.environ | alone, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    small, *others = [json.loads(line) for line in run.stderr.splitlines() if line.startswith("{")]
    for counters, held in zip(others, (0.5, 1), strict=True):
        assert (counters["tokens"], counters["forwards"]) == (4, 2)
        grown = counters["peak_memory_mb"] - small["peak_memory_mb"]  # beyond what Python and PyTorch take
        assert 0.9 * held * sum(sizes) < grown < held * sum(sizes) + 6 * matrix, held


@pytest.mark.parametrize("flags, needed", [([], "1.75"), (["--dtype", "bfloat16"], "0.873"), (["--int8"], "0.437")])
def test_layers_of_8b_that_do_not_fit_are_refused_before_any_is_read(saved, tmp_path, monkeypatch, capsys, flags, needed):
    """Would catch a check after the first shard, one that counts the bytes of the file, and a traceback."""
    monkeypatch.setattr(load_weights, "free_memory", lambda device: 0.4e9)
    monkeypatch.setattr(load_weights, "read_tensors", None)
    with pytest.raises(SystemExit) as exit:
        command_line.main(["--model", str(two_layers(saved, tmp_path / "8b")), "--prompt", "abc", "--device", "cpu", *flags])
    out, err = capsys.readouterr()
    assert (exit.value.code, out, err.count("\n")) == (2, "", 1) and f" need {needed} GB, but cpu has 0.4 GB free" in err


# --- what is refused -----------------------------------------------------------------------------------------------------------------


def change_config(**changes):
    return lambda folder: edit(folder / "config.json", lambda config: config.update(changes))


def drop_config(key):
    return lambda folder: edit(folder / "config.json", lambda config: config.pop(key))


def change_tensors(change):
    return lambda folder: edit_tensors(folder, change)


def index(text):
    """Only shards, by this index."""

    def damage(folder):
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return damage


def rewrite(file, old, new) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


NORM, HEAD = PREFIX + "ln_f.weight", PREFIX + "ff_out.weight"
BREAKAGES = {
    "truncated weights": (lambda f: cut(f / "model.safetensors"), "is truncated or not a safetensors file"),
    "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "is truncated or not a safetensors file"),
    "a pickle": (lambda f: torch.save({"a": torch.ones(2)}, f / "model.safetensors"), "is truncated or not a safetensors file"),
    "only a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "model.safetensors is missing (only safetensors is read, never pickled weights)",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "a misnamed tensor": (change_tensors(lambda t: t.update({"norm": t.pop(NORM)})), "unexpected tensor norm, which this model does not have"),
    "a missing tensor": (change_tensors(lambda t: t.pop(NORM)), f"tensor {NORM} is missing (1 of 21 are)"),
    "a misshapen tensor": (
        change_tensors(lambda t: t.update({HEAD: t[HEAD][:, :-1].contiguous()})),
        f"tensor {HEAD} has shape [40, 31], config.json implies [40, 32]",
    ),
    "an integer tensor": (change_tensors(lambda t: t.update({NORM: t[NORM].int()})), f"tensor {NORM} is I32, expected one of F64, F32, F16, BF16"),
    "NaN": (change_tensors(lambda t: t[NORM].fill_(float("nan"))), f"tensor {NORM} holds NaN or infinity"),
    "infinity": (change_tensors(lambda t: t[HEAD][3, 3:4].fill_(float("inf"))), f"tensor {HEAD} holds NaN or infinity"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not readable as JSON"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: expected an object, found a list"),
    "a missing size": (drop_config("d_model"), "config.json: d_model is missing"),
    "a size in words": (change_config(n_layers="two"), "config.json: n_layers is 'two', expected a whole number"),
    "a size that is true": (change_config(n_layers=True), "config.json: n_layers is True, expected a whole number"),
    "a negative size": (change_config(n_heads=-4), "config.json: n_heads is -4"),
    "a size of zero": (change_config(n_layers=0), "config.json: n_layers is 0"),
    "heads that do not divide": (change_config(n_heads=5), "n_heads 5 must divide d_model 32"),
    "key heads that do not divide": (change_config(n_kv_heads=3), "n_kv_heads 3 must divide n_heads 4"),
    "a mask outside the vocabulary": (change_config(mask_token_id=40), "mask_token_id 40 lies outside the vocabulary of 40"),
    "another activation": (change_config(activation_type="gelu"), "activation_type is 'gelu', but this model implements only 'silu'"),
    "biases": (change_config(include_bias=True), "include_bias is True, but this model implements only False"),
    "another model": (change_config(model_type="llama"), "this is a checkpoint of 'llama' (['LLaDAModelLM']), but this model implements only LLaDA and Dream"),
    "an unknown key": (change_config(logit_softcap=30.0), "unknown key logit_softcap = 30.0 might change the arithmetic"),
    "an index without a map": (index("{}"), "no weight_map"),
    "an index that is no JSON": (index("[" * 100_000), "model.safetensors.index.json is not readable as JSON"),
    "a shard outside the folder": (
        index('{"weight_map": {"a": "../secret.safetensors"}}'),
        "shard '../secret.safetensors' is not a plain file name",
    ),
    "a shard without a name": (index('{"weight_map": {"a": null}}'), "shard None is not a plain file name"),
    "a shard that is a list": (index('{"weight_map": {"a": [1]}}'), "shard [1] is not a plain file name"),
    "a shard of another name": (index('{"weight_map": {"a": "\\u001b[31m.safetensors"}}'), "\ufffd[31m.safetensors is missing"),
    "eight bits": (change_tensors(lambda t: t.update({HEAD: t[HEAD].to(torch.float8_e4m3fn)})), f"tensor {HEAD} is F8_E4M3, expected one of F64"),
    "numbers too large for the dtype": (
        change_tensors(lambda t: t.update({NORM: t[NORM].double().fill_(1e300)})),
        f"tensor {NORM} in float32 holds NaN or infinity",
    ),
    "a million layers": (change_config(n_layers=1_000_000), "config.json: n_layers is 1000000, but there are only 21 tensors"),
    "a size without bounds": (change_config(d_model=2**63), "config.json: d_model is 9223372036854775808, expected a whole number of 1 to 16777216"),
    "a size of hundreds of digits": (change_config(mlp_hidden_size=10**400), "config.json: mlp_hidden_size is 1000"),
    "NaN in the config": (change_config(rms_norm_eps=float("nan")), "config.json is not readable as JSON: NaN is no number"),
    "a number of no size": (change_config(rms_norm_eps=1e-308), "rms_norm_eps is 1e-308, expected a number of 1e-12 to 1"),
    "a base below one": (change_config(rope_theta=1e-3), "rope_theta is 0.001, expected a number of 1 to 1000000000000.0"),
    "a base that is infinite": (
        lambda f: rewrite(f / "config.json", '"rope_theta": 500000.0', '"rope_theta": 1e999'),
        "rope_theta is inf, expected a number of 1 to",
    ),
    "a number of thousands of digits": (
        lambda f: rewrite(f / "config.json", '"d_model": 32', '"d_model": ' + "1" * 5000),
        "config.json",
    ),
    "a config that is deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not readable as JSON"),
    "a mask that ends": (change_config(eos_token_id=MASK), "config.json: mask_token_id 39 is an end token, too"),
    "an end in words": (change_config(eos_token_id="<eos>"), "config.json: eos_token_id is '<eos>', expected a token id, or several"),
    "ends of which one is no token": (change_config(eos_token_id=[EOS, 40]), "eos_token_id 40 lies outside the vocabulary of 40"),
    "no end": (change_config(eos_token_id=[]), "config.json: eos_token_id is missing"),
    "a rope of two bases": (change_config(rope_parameters={"rope_theta": 10.0}), "rope_parameters {'rope_theta': 10.0} contradict rope_theta 500000.0"),
    "another rope": (change_config(rope_parameters={"rope_type": "yarn"}), "unknown key rope_parameters = {'rope_type': 'yarn'}"),
    "a key that commands the terminal": (change_config(**{"\x1b[2J": 1}), "unknown key \ufffd[2J = 1"),
}  # fmt: skip


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_checkpoint_is_named_in_one_line(checkpoint, breakage):
    """Would catch a traceback, a model that computes something else than its checkpoint says, and a vague message."""
    damage, message = BREAKAGES[breakage]
    damage(checkpoint)
    with pytest.raises(ValueError) as error:
        load_model(checkpoint, device="cpu")
    assert message in str(error.value) and str(error.value).isprintable()


def test_the_same_tensor_in_two_shards_is_refused(checkpoint):
    """Would catch the last shard winning silently."""
    index('{"weight_map": {"a": "more.safetensors", "b": "shard.safetensors"}}')(checkpoint)
    shutil.copy(checkpoint / "shard.safetensors", checkpoint / "more.safetensors")
    with pytest.raises(ValueError, match="is both in more.safetensors and in shard.safetensors"):
        load_model(checkpoint)


def test_the_single_file_goes_before_an_index(checkpoint, saved):
    """Would catch stale shards that win silently over the file which everything else that reads such folders takes."""
    stale = {name: tensor + 1 for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file(stale, checkpoint / "stale.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(stale, "stale.safetensors")}))
    assert same_weights(load_model(checkpoint, device="cpu"), load_model(saved, device="cpu"))


@pytest.mark.parametrize(
    "keys",
    [
        {"return_dict": True, "id2label": {"0": "a"}, "label2id": {"a": 0}, "top_k": 50, "top_p": 1.0, "temperature": 1.0},
        {"attn_implementation": "sdpa", "_attn_implementation_internal": "eager", "multi_query_attention": False, "pruned_heads": {}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "rope_scaling": None},
    ],
)
def test_keys_that_change_nothing_are_taken(checkpoint, saved, keys):
    """Would catch a checkpoint that is refused for what another library has written into its config.json."""
    edit(checkpoint / "config.json", lambda config: config.update(keys))
    assert load_config(checkpoint) == load_config(saved)


def test_the_base_is_read_where_newer_files_have_it(checkpoint):
    """Would catch a base that silently is the default."""
    edit(checkpoint / "config.json", lambda c: c.update(rope_parameters={"rope_type": "default", "rope_theta": c.pop("rope_theta") / 50}))
    assert load_config(checkpoint).rope_theta == 10000.0


def test_another_model_is_named_before_any_of_its_keys(checkpoint):
    """Would catch a message about a key, from which nobody would guess that the whole model is another."""
    edit(checkpoint / "config.json", lambda c: c.update(model_type="llada_moe", num_experts=64, architectures=["LLaDAMoEModelLM"]))
    edit(checkpoint / "config.json", lambda c: [c.pop(key) for key in ("d_model", "block_type")])
    with pytest.raises(ValueError, match=r"this is LLaDA-MoE \(\['LLaDAMoEModelLM'\]\), but this model implements only"):
        load_model(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int64])
def test_no_file_of_tensors_holds_other_numbers(tmp_path, dtype):
    """Would catch a filter in eight bits, whose least and largest number PyTorch cannot find."""
    save_file({"a": torch.ones(3).to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors: tensor a is .*, expected one of F64, F32, F16, BF16"):
        list(load_weights.read_tensors(tmp_path / "a.safetensors", "cpu"))


def test_a_model_too_large_for_the_memory_is_refused_with_its_size(saved, monkeypatch):
    """Would catch a machine brought down by an allocation that cannot succeed."""
    monkeypatch.setattr(load_weights, "free_memory", lambda device: 50_000)
    with pytest.raises(ValueError, match=r"in float32 need 8.05e-05 GB, but cpu has 5e-05 GB free"):
        load_model(saved, device="cpu")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: edit(f / "adapter_config.json", lambda c: c.update(peft_type="IA3")), "expected a LoRA adapter"),
        (lambda f: edit(f / "adapter_config.json", lambda c: c.update(r=0)), "expected a LoRA adapter"),
        (lambda f: edit(f / "adapter_config.json", lambda c: c.update(use_dora=True)), "use_dora = True is not supported"),
        (lambda f: edit(f / "adapter_config.json", lambda c: c.update(bias="all")), "bias = 'all' is not supported"),
        (lambda f: edit(f / "adapter_config.json", lambda c: c.update(r=4)), "has shape [3, 32], expected [4, 32]"),
        *[
            (lambda f, c=c: edit(f / "adapter_config.json", lambda config: config.update(c)), f"{key} = {value!r} is not supported")
            for c in (
                {"init_lora_weights": "pissa"},
                {"init_lora_weights": "pissa_niter_4"},
                {"init_lora_weights": "olora"},
                {"modules_to_save": ["wte"]},
                {"init_lora_weights": "corda"},
                {"init_lora_weights": "loftq"},
                {"alora_invocation_tokens": [1, 2]},
                {"bias": []},
                {"trainable_token_indices": [3]},
                {"something_new": {"a": 1}},
                {"rank_pattern": {"q_proj": 5}},
                {"fan_in_fan_out": True},
            )
            for key, value in c.items()
        ],
        *[
            (lambda f, a=alpha: edit(f / "adapter_config.json", lambda c: c.update(lora_alpha=a)), "above 0")
            for alpha in (0, -1, True, "6", 10**400, 1e300, None)
        ],
        (lambda f: edit(f / "adapter_config.json", lambda c: c.update(lora_alpha=float("inf"))), "Infinity is no number"),
        (lambda f: rewrite(f / "adapter_config.json", '"lora_alpha": 6', '"lora_alpha": 1e999'), "above 0"),
        (lambda f: edit(f / "adapter_config.json", lambda c: c.update(r=10**400)), "expected a LoRA adapter"),
        (lambda f: (f / "adapter_config.json").write_text("[" * 100_000), "adapter_config.json is not readable as JSON"),
        (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "adapter_model.safetensors is missing (only safetensors is read, never pickled weights)",
        ),
        (
            lambda f: save_file({LORA("blocks.0.q_proj", "A"): torch.ones(3, 32).to(torch.int8)}, f / "adapter_model.safetensors"),
            "is I8, expected one of F64",
        ),
        (
            lambda f: save_file(
                {LORA("blocks.0.q_proj", "A").replace("A.", "A.default."): torch.ones(3, 32)}, f / "adapter_model.safetensors"
            ),
            "(a saved state of training: save_pretrained writes an adapter)",
        ),
        (
            lambda f: save_file(
                {name: tensor.fill_(3e38) for name, tensor in load_file(f / "adapter_model.safetensors").items()},
                f / "adapter_model.safetensors",
            ),
            "with the adapter in float32 holds NaN or infinity",
        ),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda f: cut(f / "adapter_model.safetensors"), "is truncated or not a safetensors file"),
        (lambda f: save_file({"x": torch.ones(1)}, f / "adapter_model.safetensors"), "tensor x belongs to no weight of this model"),
        (
            lambda f: save_file({LORA("ln_f", "A"): torch.ones(3, 32)}, f / "adapter_model.safetensors"),
            "belongs to no weight of this model",
        ),
        (
            lambda f: save_file({LORA("blocks.0.q_proj", "A"): torch.ones(3, 32)}, f / "adapter_model.safetensors"),
            "every adapted weight needs both lora_A and lora_B",
        ),
    ],
)
def test_a_broken_adapter_is_named_in_one_line(saved, tmp_path, change, message):
    """Would catch an adapter that is applied in part, or not at all."""
    adapter_of(tmp_path / "lora", random_model(0))
    change(tmp_path / "lora")
    with pytest.raises(ValueError) as error:
        load_model(saved, adapter=tmp_path / "lora", device="cpu")
    assert message in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("start", [None, True, False, "gaussian", "orthogonal"])
def test_an_adapter_with_all_that_peft_writes_is_taken(saved, tmp_path, start):
    """Would catch an adapter that is refused for a key which says nothing about inference."""
    keys = {
        "init_lora_weights": start, "auto_mapping": None, "base_model_name_or_path": "x", "revision": None, "inference_mode": True,
        "lora_dropout": 0.1, "layers_to_transform": None, "megatron_core": "megatron.core", "qalora_group_size": 16, "task_type": "CAUSAL_LM",
        "use_dora": False, "use_rslora": False, "loftq_config": {}, "rank_pattern": {}, "corda_config": None, "peft_version": "0.18.0",
    }  # fmt: skip
    adapter_of(tmp_path / "plain", random_model(0))
    adapter_of(tmp_path / "lora", random_model(0), **keys)
    one, other = (load_model(saved, tmp_path / name, device="cpu") for name in ("plain", "lora"))
    assert same_weights(one, other)


def test_a_name_that_is_neither_folder_nor_hub_is_refused(monkeypatch):
    """Would catch a hang or a traceback without a network, and a path taken for a Hugging Face id."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing is neither a folder here nor to be had from Hugging Face: "):
        load_model("nobody/nothing")
    with pytest.raises(ValueError, match="no checkpoint at ./nothing/here: give a folder or a Hugging Face id"):
        load_model("./nothing/here")


@pytest.mark.parametrize("name", ["warp", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(saved, name):
    """Would catch a traceback from deep inside torch."""
    with pytest.raises(ValueError, match="device"):
        load_model(saved, device=name)


def test_memory_that_pytorch_keeps_for_itself_is_free(monkeypatch):
    """Would catch a second decode that is refused because the first one's memory went back to PyTorch and not to the driver."""
    for name, bytes in {"mem_get_info": (10, 100), "memory_reserved": 7, "memory_allocated": 4}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, bytes=bytes: bytes)
    assert load_weights.free_memory(torch.device("cuda")) == 13


def test_an_adapter_is_added_in_float32(tmp_path):
    """Would catch a sum that is rounded to the dtype of the file before the model's."""
    save_model(random_model(0), tmp_path / "half", dtype=torch.bfloat16)
    plain = load_model(tmp_path / "half", device="cpu")
    halves = adapter_of(tmp_path / "lora", plain)
    merged = load_model(tmp_path / "half", adapter=tmp_path / "lora", device="cpu")
    for name, (a, b) in halves.items():
        assert merged.get_submodule(name).weight.equal(plain.get_submodule(name).weight + 2.0 * (b @ a))
