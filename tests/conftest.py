"""What the tests share: small random models whose confidences are spread out, so that strategies really differ on them."""

import json
import math
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that a bare `pytest` finds the project, too

from families import PREFIX
from lab.save import save_filter, save_model
from model import Config, LLaDA
from strategies import STRATEGIES

torch.set_num_threads(1)  # these models are so small that a second thread only waits
settings.register_profile("default", deadline=None, max_examples=8, derandomize=True)
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config) -> None:
    """The whole suite is run by two processes where there are two cores; what is named, or chosen, by one, as all is under `-n 0`."""
    option = config.option
    chosen = config.args_source is config.ArgsSource.ARGS or option.keyword or option.collectonly or option.usepdb
    if "PYTEST_XDIST_WORKER" in os.environ or chosen or getattr(option, "numprocesses", 0) is not None:
        return  # a worker must not start others; without pytest-xdist there is no such option
    if (os.cpu_count() or 1) > 1:
        option.numprocesses, option.dist = 2, "loadfile"  # the tests of a file share decodes and fixtures


MASK, EOS, VOCABULARY = 39, 38, 40
GAINS = {"wte": 1.0, "q_proj": 3.0, "k_proj": 3.0}  # of a matrix; the last of all has 4


def random_model(seed: int, n_layers: int = 2, n_kv_heads: int = 4, max_sequence_length: int = 512, config=None, **family) -> LLaDA:
    """A model of 40 tokens with random float32 weights: sharp attention for varied answers, a sharp head for confidences of 0.2 to 1."""
    config = config or Config(32, n_layers, 4, 48, VOCABULARY, MASK, EOS, n_kv_heads, max_sequence_length, **family)
    model = LLaDA(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            gain = 4.0 if name == "ff_out.weight" else GAINS.get(name.split(".")[-2], 2.0)
            fan_in = 1 if name == "wte.weight" else weight.shape[1]
            weight.copy_(torch.randn(weight.shape, generator=generator) * gain / math.sqrt(fan_in))
        elif name.endswith("bias"):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


FILTERS = tempfile.TemporaryDirectory()  # removed when the tests end


def random_filter(k: int, seed: int = 0) -> str:
    """A file with a filter for blocks of k tokens that likes sure tokens, and looks at their neighbours, too."""
    file = Path(FILTERS.name, f"{k}-{seed}.safetensors")
    if not file.exists():
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator) / k**0.5
        save_filter([torch.eye(k) + 0.3 * draw(k, k), 0.1 * draw(k), 6 * torch.eye(k) + draw(k, k), draw(k) - 4], file)
    return str(file)


def random_frequencies(seed: int = 0) -> str:
    """A file with how often each token is in a corpus; two are not in it."""
    file = Path(FILTERS.name, f"frequencies-{seed}.json")
    counts = torch.randint(1, 100, (EOS,), generator=torch.Generator().manual_seed(seed))
    file.write_text(json.dumps({"num_token": int(counts.sum()), "p_baseline_dict": dict(enumerate(counts.tolist()))}))
    return str(file)


def random_prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, EOS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(autouse=True, scope="module")
def registry():
    """Rules of one's own, and files that a test puts into strategies/, are gone when its module ends."""
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)


@pytest.fixture
def model() -> LLaDA:
    return random_model(0)


@contextmanager
def full_disk(size: int):
    """No file can grow beyond so many bytes: what a full disk does, with another number."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


CHARACTERS = "abcdefghijklmnopqrstuvwxyz 123456789.?"  # ids 0 to 37
LORA = f"base_model.model.{PREFIX}{{}}.lora_{{}}.weight".format
TEMPLATE = "{% for message in messages %}{{ message['content'] | trim }}?{% endfor %} "


def save_checkpoint(folder: Path) -> None:
    """Write a complete checkpoint of a random model whose tokens are characters."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    save_model(random_model(0), folder)
    encoder = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="?"))
    encoder.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    encoder.decoder = decoders.Fuse()
    encoder.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<mask>", special=True)])
    encoder.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<eos>"}))


def adapter_of(folder: Path, model: LLaDA, rank: int = 3, **config) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Write a random LoRA adapter of q_proj and ff_proj in PEFT layout and return its {module: (A, B)}."""
    folder.mkdir()
    content = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": ["q_proj", "ff_proj"], "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(content))
    generator, halves = torch.Generator().manual_seed(5), {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "ff_proj")):
            out_width, in_width = module.weight.shape
            halves[name] = torch.randn(rank, in_width, generator=generator) / 8, torch.randn(out_width, rank, generator=generator) / 8
    tensors = {LORA(n, half): t for n, pair in halves.items() for half, t in zip("AB", pair)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return halves


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """The folder of a complete checkpoint; copy it before changing it."""
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    """A copy of `saved` that the test may break."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit(file, change) -> None:
    """Change a JSON file in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
