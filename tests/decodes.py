"""Dump several hundred decodes, and compare them with a dump of another state of the code: what a change of layout must not change.

    python tests/decodes.py dump before.jsonl            in the one state
    python tests/decodes.py compare before.jsonl         in the other; exit code 1 if one differs

Every strategy with every cache it takes, greedy and sampled, alone and in a batch of three with padding, and every policy for EOS, on small random
models: tokens, the forward that wrote each, forwards, rows and lengths. It knows the strategies by name only, so that both states can run it.
"""

import json
import math
import sys
import tempfile
from itertools import cycle
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from dllm import generate
from model import Config, LLaDA

MASK, EOS, VOCABULARY, L = 39, 38, 40, 8
CACHES = ("none", "prefix", "dual", "vicinity", "frozen")


def random_model(seed: int) -> LLaDA:
    model = LLaDA(Config(32, 2, 4, 48, VOCABULARY, MASK, EOS, 2, 512)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            gain = 4.0 if name == "ff_out.weight" else 3.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 2.0
            scale = 1.0 if name == "wte.weight" else gain / math.sqrt(weight.shape[1])
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model


def random_prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, EOS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def random_filter(folder: str) -> str:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator) / L**0.5
    parts = {"hidden.weight": torch.eye(L) + 0.3 * draw(L, L), "hidden.bias": 0.1 * draw(L)}
    parts |= {"out.weight": 6 * torch.eye(L) + draw(L, L), "out.bias": draw(L) - 4}
    save_file(parts, f"{folder}/filter.safetensors")
    return f"{folder}/filter.safetensors"


def cases(folder: str) -> list[tuple[str, dict]]:
    guide = {"guide": random_model(7), "block_length": 1}
    cached = {
        "fast-dllm": [{"threshold": 0.5}, {"threshold": None}, {"factor": 1.0}, {"threshold": 0.5, "cfg_scale": 0.7}],
        "localleap": [{"threshold": 0.7, "relaxed_threshold": 0.3, "radius": 2}],
        "streaming": [{"threshold": 0.7, "window_size": 4}, {"threshold": 0.6, "window_size": None}],
        "hierarchy": [{"high": 0.7, "low": 0.3}],
        "smoothing": [{"threshold": 0.6, "fall": None}, {"threshold": 0.6, "fall": 0.1}, {"cfg_scale": 0.7}],
        "credit": [{"threshold": 0.6}],
        "saber": [{}],
        "editing": [{"threshold": 0.6, "edit_threshold": 0.4}],
        "freedave": [{}, {"threshold": 0.6, "cfg_scale": 0.7}],
        "spiffy": [{"threshold": 0.7}],
        "swift": [{"skip": "1"}],
        "learn2pd": [{"filter": random_filter(folder), "tau": 0.5}],
        "prism": [{"threshold": 0.5, "n": 4, "k": 2, "interval": 1, "search_to": 1.0}],
    }
    return [(name, {"cache": cache} | own) for name, many in cached.items() for own in many for cache in CACHES] + [
        ("llada", {}),
        ("llada", {"steps": 9}),
        ("llada", {"cfg_scale": 0.7}),
        *[("llada", {"remasking": order}) for order in ("margin", "entropy", "random")],
        *[("d2f", {"cache": cache, "skip_threshold": 0.5, "decoded_token_threshold": 0.5}) for cache in ("none", "exact")],
        ("d2f", {"cfg_scale": 0.7}),
        ("conv", {"width": 5}),
        ("conv", {"block_length": 24, "steps": 9}),
        *[("dkv", {"refresh": 3} | own) for own in ({}, {"threshold": 0.5}, {"prefill": True}, {"cfg_scale": 0.7})],
        *[("sparse", own) for own in ({}, {"threshold": 0.5}, {"keep_ratio": 0.2, "cfg_scale": 0.7})],
        ("dllm-cache", {"prompt_interval_steps": 4, "gen_interval_steps": 3}),
        ("dllm-cache", {"gen_interval_steps": 7, "threshold": 0.5}),
        ("dllm-cache", {"prompt_interval_steps": 2, "gen_interval_steps": 3, "cfg_scale": 0.7}),
        *[("d3llm", {"theta": 1.0, "decoded_token_threshold": 0.5, "delay": d, "refresh": r}) for d, r in ((0, 99), (1, 4), (2, 1))],
        ("dllm-var", {"threshold": 0.5}),
        ("apd", guide | {"recompute": 16, "lookahead": 100, "share": 0.7}),
        ("apd", guide | {"recompute": 2, "lookahead": 5, "share": 0.9}),
        ("apd", guide | {"recompute": None, "lookahead": 8, "share": 0.5, "cfg_scale": 0.7}),
        *[("guided", guide | {"recompute": w, "lookahead": m, "top": t}) for w, m, t in ((0, 32, 5), (3, 4, 20), (None, 8, 1))],
        ("prism", {"cache": "dual", "n": 3, "k": 1, "threshold": None, "cfg_scale": 0.7, "interval": 2, "decay": 1.2}),
        ("ar", {"block_length": 1}),
    ]


def decodes():
    """Yield (what was decoded, what came out), both as JSON takes them."""
    models, policies = [random_model(seed) for seed in range(2)], cycle(("fill", "stop", "suppress", "defer", None))
    with tempfile.TemporaryDirectory() as folder:
        for name, own in cases(folder):
            for prompts in ([[0, 6]], [[1, 9]], [[2, 9], [3, 3], [4, 6]]):
                for temperature in (0.0, 0.8):
                    settings = {"gen_length": 24, "block_length": L, "temperature": temperature} | own
                    if (eos := next(policies)) is not None:
                        settings["eos"] = eos
                    which = (prompts[0][0] + len(prompts)) % 2
                    result = generate(models[which], [random_prompt(*prompt) for prompt in prompts], name, **settings)
                    told = {key: value for key, value in settings.items() if key not in ("guide", "filter")}
                    got = {"tokens": result.tokens.tolist(), "written": result.written.tolist(), "nfe": result.nfe}
                    got |= {"forwards": result.forwards, "rows": result.rows, "lengths": result.lengths}
                    yield [name, which, prompts, told], got


def main(way: str, file: str) -> None:
    torch.set_num_threads(1)
    if way == "dump":
        Path(file).write_text("".join(json.dumps(pair) + "\n" for pair in decodes()))
        return
    before = [json.loads(line) for line in open(file)]
    different = 0
    for number, (pair, (what, got)) in enumerate(zip(before, decodes(), strict=True)):
        assert pair[0] == what, f"line {number + 1} is another decode"
        if pair[1] != got:
            different += 1
            print(*what, "differs in", ", ".join(key for key in got if got[key] != pair[1][key]))
    print(f"{len(before) - different} of {len(before)} decodes are equal")
    sys.exit(different > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
