"""Dream's checkpoints: what its files say, in which words they are refused, and the command line on a small one."""

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import checkpoint as files
import load_weights
from conftest import LORA, edit, random_model, random_prompt
from dllm import generate
from families import DREAM, LLADA
from lab import command_line
from lab.save import save_model
from load_weights import load_config, load_model, load_tokenizer
from model import Config, Int8Linear
from test_command_line import run

SHIFTED = {"qkv_bias": True, "shift": 1}
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|beginoftext|>", "<|mask|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "Ċ Ċ", "' s"]
TEMPLATE = (  # as in Dream's demo; a system message of its own where none is given
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RELEASED = {  # Dream-v0-Instruct-7B's config.json
    "architectures": ["DreamModel"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944, "mask_token_id": 151666, "max_position_embeddings": 131072,
    "max_window_layers": 28, "model_type": "Dream", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "pad_token_id": 151643, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.46.2", "use_cache": True, "use_mrope": False,
    "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip


def save_dream(folder: Path, shards: int = 3) -> None:
    """Write a complete random checkpoint in Dream's format: bytes, a few merges and Dream's added tokens, in shards."""
    from tokenizers import pre_tokenizers

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {word: number for number, word in enumerate(words)}
    end, mask = len(words), len(words) + ADDED.index("<|mask|>")
    config = Config(32, 2, 4, 48, len(words) + len(ADDED) + 2, mask, end, 2, 512, 1e6, 1e-6, **SHIFTED)
    save_model(random_model(0, config=config), folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    added = {str(end + i): {"content": text, "special": "tool" not in text} | flags for i, text in enumerate(ADDED)}
    told = {"added_tokens_decoder": added, "chat_template": TEMPLATE, "tokenizer_class": "DreamTokenizer", "add_prefix_space": False}
    told |= {"bos_token": "<|beginoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dream")
    save_dream(folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


# --- config and tensors


def test_the_config_of_dream_7b_is_understood(tmp_path):
    """Would catch a key of the released config.json that is refused or mistaken, and other figures than docs/dream.md computes."""
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    c = load_config(tmp_path)
    shape = (3584, 28, 28, 18944, 152064, 151666, 151643, 4, 131072, 1e6, 1e-6, (), True, 1)
    assert c == Config(*shape) and c.head_width == 128
    with torch.device("meta"):
        model = load_weights.LLaDA(c)
    numbers = {name: p.numel() for name, p in model.named_parameters()}
    assert len(numbers) == 339 and sum(numbers.values()) == 7_615_616_512
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, load_weights.Linear))
    page = (Path(__file__).parent.parent / "docs" / "dream.md").read_text()
    total, int8 = 2 * sum(numbers.values()) / 1e9, (matrices + 2 * (sum(numbers.values()) - matrices)) / 1e9
    told = [
        f"{total:.1f} GB as bfloat16",
        f"{int8:.1f} GB with `--int8`",
        f"{2 * c.slot_width / 1e3:.0f} KB",
        f"{512 * c.vocab_size * 16 / 1e9:.2f} GB",
    ]
    assert [figure for figure in told if figure not in page] == []


def test_names_are_those_of_the_files():
    """Would catch two parameters under one name, and a model that is saved as it is not read."""
    names = {name: DREAM.tensor(name) for name, _ in random_model(0, **SHIFTED).named_parameters()}
    assert len(set(names.values())) == len(names)
    assert names["blocks.1.ff_out.weight"] == "model.layers.1.mlp.down_proj.weight" and names["ff_out.weight"] == "lm_head.weight"
    assert names["blocks.0.k_proj.bias"] == "model.layers.0.self_attn.k_proj.bias"
    assert LLADA.tensor("blocks.0.k_proj.weight") == "model.transformer.blocks.0.k_proj.weight"


def test_what_is_saved_is_read_as_it_was(tmp_path):
    """Would catch a bias, a shift or an end token that is lost on the way; and a mixture that no format holds."""
    model = random_model(3, n_kv_heads=2, **SHIFTED)
    save_model(model, tmp_path)
    again = load_model(tmp_path, device="cpu")
    assert again.config == model.config
    assert all(again.get_parameter(name).equal(p) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="no format holds qkv_bias=True with shift=0"):
        save_model(random_model(0, qkv_bias=True), tmp_path / "other")


def test_int8_keeps_the_biases(saved):
    """Would catch a bias that is dropped with its matrix, whichever of the two is read first, or is scaled with it."""
    plain, small = (load_model(saved, device="cpu", int8=int8) for int8 in (False, True))
    for block, other in zip(plain.blocks, small.blocks):
        assert isinstance(other.q_proj, Int8Linear) and other.v_proj.bias.equal(block.v_proj.bias)
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(other.k_proj(x), block.k_proj(x), atol=0.1, rtol=0)
    ids = torch.tensor([random_prompt(0, 12)])
    assert 0 < (plain(ids) - small(ids)).abs().max() < 2


def test_an_adapter_is_merged_by_its_files_names(saved, tmp_path):
    """Would catch an adapter of D2F's student for Dream that fits no weight."""
    plain, folder = load_model(saved, device="cpu"), tmp_path / "lora"
    folder.mkdir()
    name, generator = "model.layers.1.self_attn.q_proj", torch.Generator().manual_seed(1)
    a, b = torch.randn(3, 32, generator=generator), torch.randn(32, 3, generator=generator)
    names = [LORA("", half).replace("model.transformer.", name) for half in "AB"]
    save_file(dict(zip(names, (a, b))), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}))
    merged = load_model(saved, folder, device="cpu").blocks[1].q_proj
    torch.testing.assert_close(merged.weight, plain.blocks[1].q_proj.weight + 2 * b @ a)


def change(**changes):
    return lambda folder: edit(folder / "config.json", lambda config: config.update(changes))


def drop(key):
    return lambda folder: edit(folder / "config.json", lambda config: config.pop(key))


def told(change):
    return lambda folder: edit(folder / "tokenizer_config.json", change)


def first_added(**changes):
    return told(lambda t: next(iter(t["added_tokens_decoder"].values())).update(changes))


def large(name):
    def damage(folder):
        with open(folder / name, "ab") as file:
            file.truncate(files.FILE + 1)

    return damage


BREAKAGES = {
    "LLaDA-MoE, which calls itself llada": (change(model_type="llada", architectures=["LLaDAMoEModel"]), "this is LLaDA-MoE (['LLaDAMoEModel'])"),
    "LLaDA 2": (change(model_type="llada2_moe", architectures=["LLaDA2MoeModelLM"]), "this is LLaDA 2 (['LLaDA2MoeModelLM']), but this model"),
    "SDAR": (change(model_type="sdar", architectures=["SDARForCausalLM"]), "this is SDAR (['SDARForCausalLM']), but this model implements only"),
    "a successor": (change(architectures=["DreamForCausalLM"]), "this is DreamOn or Dream-Reasoner (['DreamForCausalLM'])"),
    "other classes": (change(architectures=["DreamMoon"]), "architectures is ['DreamMoon'], but this model implements only ['DreamModel']"),
    "Qwen": (change(model_type="qwen2", architectures=["Qwen2ForCausalLM"]), "this is a checkpoint of 'qwen2' (['Qwen2ForCausalLM']), but"),
    "no base of RoPE": (drop("rope_theta"), "rope_theta is missing"),
    "no epsilon": (change(rms_norm_eps=None), "rms_norm_eps is missing"),
    "no groups": (drop("num_key_value_heads"), "num_key_value_heads is missing"),
    "no width": (drop("hidden_size"), "hidden_size is missing"),
    "a width that is text": (change(hidden_size="32"), "hidden_size is '32', expected a whole number of 1 to"),
    "uneven heads": (change(num_attention_heads=3), "num_attention_heads 3 must divide hidden_size 32 into even widths"),
    "uneven groups": (change(num_key_value_heads=3), "num_key_value_heads 3 must divide num_attention_heads 4"),
    "a million layers": (change(num_hidden_layers=10**6), "num_hidden_layers is 1000000, but there are only 27 tensors"),
    "tied": (change(tie_word_embeddings=True), "tie_word_embeddings is True, but this model implements only False"),
    "scaled": (change(rope_scaling={"type": "yarn"}), "rope_scaling is {'type': 'yarn'}, but this model implements only None"),
    "a window": (change(use_sliding_window=True), "use_sliding_window is True, but this model implements only False"),
    "a key of LLaDA's": (change(n_heads=4), "unknown key n_heads = 4 might change the arithmetic"),
    "no merges": (lambda folder: (folder / "merges.txt").unlink(), "merges.txt is missing"),
    "no vocabulary": (lambda folder: (folder / "vocab.json").unlink(), "tokenizer.json is missing, or vocab.json with merges.txt"),
    "merges of other words": (lambda folder: (folder / "merges.txt").write_text("x qq\n"), "vocab.json and merges.txt are not a tokenizer: "),
    "a merge of three": (lambda folder: (folder / "merges.txt").write_text("h e l\n"), "vocab.json and merges.txt are not a tokenizer: "),
    "numbers that are none": (lambda folder: (folder / "vocab.json").write_text('{"a": -1}'), "vocab.json and merges.txt are not a tokenizer: "),
    "not UTF-8": (lambda folder: (folder / "merges.txt").write_bytes(b"\xff\xfe\x00"), "vocab.json and merges.txt are not a tokenizer: "),
    "a vocabulary without end": (large("vocab.json"), "vocab.json: is larger than 128 MB"),
    "merges without end": (large("merges.txt"), "merges.txt: is larger than 128 MB"),
    "settings without end": (large("tokenizer_config.json"), "tokenizer_config.json: is larger than 128 MB"),
    "another tokenizer": (told(lambda t: t.update(tokenizer_class="GPT2Tokenizer")), "tokenizer_class GPT2Tokenizer, add_prefix_space False: of"),
    "a space in front": (told(lambda t: t.update(add_prefix_space=True)), "only Qwen 2's is implemented"),
    "no added tokens": (told(lambda t: t.pop("added_tokens_decoder")), "added_tokens_decoder has no list of 1 to 10000 tokens"),
    "added tokens in a list": (told(lambda t: t.update(added_tokens_decoder=[1])), "added_tokens_decoder has no list of 1 to"),
    "too many": (told(lambda t: t.update(added_tokens_decoder={str(i): {"content": str(i)} for i in range(10_001)})), "has no list of 1 to"),
    "a number that is none": (told(lambda t: t["added_tokens_decoder"].update({"\x1b[2J": {"content": "a"}})), "'\\x1b[2J': {'content': 'a'}, no token"),
    "an empty token": (first_added(content=""), "'special': True"),
    "a token of another kind": (first_added(content=7), ", no token"),
    "a gap": (told(lambda t: t["added_tokens_decoder"].pop("266")), "the token '<tool_call>' is 266 behind vocab.json, not 267"),
    "twice the same": (first_added(content="<|im_end|>"), "the token '<|im_end|>' is 264 behind vocab.json, not"),
}  # fmt: skip


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_is_wrong_is_named_in_one_line(checkpoint, breakage, capsys):
    """Would catch a traceback, a message in LLaDA's words about a key that Dream calls otherwise, and a tokenizer that is nearly right."""
    damage, message = BREAKAGES[breakage]
    damage(checkpoint)
    out, err, code = run(capsys, "--model", checkpoint, "--prompt", "hello")
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err and err[:-1].isprintable()


def test_a_large_tokenizer_json_is_refused_too(checkpoint, capsys):
    """Would catch a bound that only Dream's files have."""
    large("tokenizer.json")(checkpoint)
    out, err, code = run(capsys, "--model", checkpoint, "--prompt", "hello")
    assert (code, out, err.count("\n")) == (2, "", 1) and "tokenizer.json: is larger than 128 MB" in err


# --- the tokenizer


def words(tokenizer, text: str) -> list[str]:
    return [word for word, _ in tokenizer.encoder.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hello world", ["hello", "Ġworld"]),
        ("it's  WE'LL", ["it", "'s", "Ġ", "ĠWE", "'LL"]),
        ("12 34", ["1", "2", "Ġ", "3", "4"]),
        ("a\n\n b", ["a", "ĊĊ", "Ġb"]),
        ("x = (y);\n", ["x", "Ġ=", "Ġ(", "y", ");Ċ"]),
        ("end   ", ["end", "ĠĠĠ"]),
        ("über", ["Ã¼ber"]),
    ],
)
def test_text_falls_into_the_pieces_of_qwen(saved, text, expected):
    """Would catch another pattern: digits that go together, spaces that go with the wrong word."""
    assert words(load_tokenizer(saved), text) == expected


def test_pieces_are_merged_and_added_tokens_are_one(saved):
    """Would catch merges in another order, and added tokens that fall into letters or have another number."""
    tokenizer = load_tokenizer(saved)
    ids = tokenizer.encode("hello<|im_end|>12 w")
    assert [tokenizer.encoder.id_to_token(i) for i in ids] == ["hello", "<|im_end|>", "1", "2", "Ġw"]
    assert tokenizer.encode("<|mask|>") == [load_config(saved).mask_token_id]
    assert tokenizer.decode(tokenizer.encode("a<tool_call>b<|im_end|><|endoftext|>")) == "a<tool_call>b"  # only special ones are left out
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=False) == "a<|im_end|>"


@given(text=st.text())
def test_text_comes_back(saved, text):
    """Would catch bytes that have no token, and a space that is added."""
    tokenizer = load_tokenizer(saved)
    if not any(added in text for added in ADDED):
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_the_chat_template_and_its_end_of_turn(saved):
    """Would catch an answer that goes on behind <|im_end|>, and another system line."""
    tokenizer, config = load_tokenizer(saved), load_config(saved)
    text = tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "hello"}]), skip_special_tokens=False)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text == system + "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    (turn,), (end,) = tokenizer.encode("<|im_end|>"), tokenizer.encode("<|endoftext|>")
    assert (config.eos_token_id, config.end_token_ids) == (end, (turn,)) and tokenizer.ends == {end, turn}


def test_diffucoder_ends_at_the_token_it_pads_with(checkpoint):
    """Would catch an answer of DiffuCoder that goes on through its padding, which is not its EOS."""
    number = str(256 + len(MERGES) + len(ADDED))

    def add(t):
        t["added_tokens_decoder"][number] = {"content": "<|dlm_pad|>", "special": True}
        t["pad_token"] = "<|dlm_pad|>"

    edit(checkpoint / "tokenizer_config.json", add)
    config = load_config(checkpoint)
    assert int(number) in config.end_token_ids and config.eos_token_id == 256 + len(MERGES)
    edit(checkpoint / "tokenizer_config.json", lambda t: t.update(pad_token="<|mask|>"))  # a mask ends nothing
    assert load_config(checkpoint).end_token_ids == (258 + len(MERGES),)


# --- the command line


@pytest.mark.parametrize("strategy", ["dream", "fast-dllm", "localleap", "streaming", "d2f", "llada"])
def test_the_command_line_decodes_it(saved, capsys, strategy):
    """Would catch a format that only the loader knows: shards, template, ends, counters."""
    short = ["--gen-length", "16", "--block-length", "8", "--eos", "suppress", "--json"]
    out, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--strategy", strategy, *short)
    assert code == 0 and err.count("\n") == 1
    tokenizer, model = load_tokenizer(saved), load_model(saved, device="cpu")
    prompt = tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    result = generate(model, prompt, strategy, gen_length=16, block_length=8, eos="suppress")
    assert out == command_line.printable(tokenizer.decode(result.answer())) + "\n"
    assert json.loads(err)["forwards"] == result.nfe and json.loads(err)["tokens"] == 16


def test_holes_traces_and_prompts_as_they_are(saved, capsys, tmp_path):
    """Would catch a way to ask that reads a row as its own cell's, or that needs tokenizer.json."""
    short = ["--model", saved, "--gen-length", "16", "--block-length", "8", "--threshold", "0.5"]
    assert run(capsys, *short, "--prompt", "<|beginoftext|>hello", "--raw", "--trace", tmp_path / "t.jsonl")[2] == 0
    assert (tmp_path / "t.jsonl").stat().st_size > 500
    out, _, code = run(capsys, "--model", saved, "--prompt", "hello", "--infill", "a ___4 b")
    assert code == 0 and out.startswith("a") and out.endswith(" b\n")
    out, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--watch", "0", "--explain", "--gen-length", "32")
    assert code == 0


def test_a_strategy_that_is_not_made_for_it_is_refused_in_one_line(saved, capsys):
    """Would catch a traceback, or nonsense in silence."""
    out, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--strategy", "dkv")
    assert (code, out, err.count("\n")) == (
        2,
        "",
        1,
    ) and "delayed of dkv.py is not made for a model whose logits predict the token after" in err
