"""A pretended GPU (lab/pretended.py): the CPU's tokens, nothing mixed, and no more waits than are told here; for every strategy."""

from collections import Counter

import pytest
import torch

import dllm
import kernels
import load_weights
import padding
from compiled import Compiled
from conftest import random_filter, random_model, random_prompt
from dllm import generate
from lab import gpu
from lab.pretended import on_device, pretended, waits, wrap
from model import Int8Linear, Linear
from strategies import STRATEGIES, Strategy, prism
from strategies.fast_dllm import cached
from strategies.llada import serial

SETTINGS = {"gen_length": 16, "block_length": 8}
PROMPTS = [random_prompt(number, 5 + 2 * number) for number in range(3)]
OWN = gpu.OWN | {"learn2pd": {"filter": random_filter(8)}}
OTHERS = 1  # waits of a forward, of all that gpu.WAITS does not name


def prepared(number: int, on: bool, how=lambda model: model):
    """A random model, also with a compiled step that compiles nothing: shapes, padding and memory are as they would be."""
    model = how(random_model(number))
    model = on_device(model) if on else model
    model.fast = Compiled(model, compile=lambda function, **options: function)
    return model


def both(strategy, prompts=PROMPTS, how=lambda model: model, template=None, **own):
    """A decode on the CPU and the same on the device: two results, and the waits of each forward of the latter. Both see the same operators,
    those that a wrapped tensor is taken apart into: others round otherwise."""

    def counting(steps):
        waits.clear()
        for step in steps:
            # kernels of attention are looked at once for each shape
            each.append(Counter({place: n for place, n in waits.items() if "attention.py" not in place}))
            yield step
            waits.clear()

    results, each = [], []
    for on in (False, True):
        with pretended():
            ready = {"guide": prepared(own["guide"], on, how)} if "guide" in own else {}
            settings = (SETTINGS if template is None else {"block_length": 8}) | own | ready
            canvas = dllm.prepare(prepared(0, on, how), prompts, strategy, settings, template)
            results.append(dllm.finish(canvas, counting(dllm.stream(canvas))))
            assert not own.get("compile") or not canvas.whole or canvas.model.broken is False
            each = each if on else []
    return *results, each


@pytest.fixture(autouse=True)
def scores_as_they_are(monkeypatch):
    monkeypatch.setattr(Compiled, "score", lambda self, *given: kernels.score(*given))


def check_equal(cpu, sim):
    for ours, theirs in ((sim.tokens, cpu.tokens), (sim.written, cpu.written)):
        assert ours.inner.tolist() == theirs.tolist()
    assert (sim.nfe, sim.rows, sim.forwards, sim.lengths) == (cpu.nfe, cpu.rows, cpu.forwards, cpu.lengths)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if STRATEGIES[name].__module__.startswith("strategies.")])
def test_every_strategy_decodes_there_as_on_the_cpu(strategy, compile):
    """Would catch a tensor that is made on the CPU, which a machine without a GPU never notices, and a value that the loop reads. A batch
    of three prompts of other lengths, whose rows finish one by one."""
    cpu, sim, each = both(strategy, **OWN.get(strategy, {}), compile=compile)
    check_equal(cpu, sim)
    most = gpu.WAITS.get(strategy, OTHERS)
    assert len(each) > 3 and all(0 < waits.total() <= most for waits in each[1:]), [
        dict(waits) for waits in each[1:] if waits.total() > most
    ]


def test_a_search_waits_where_it_prunes(monkeypatch):
    """Would catch a search that asks the device, forward by forward, what the loop has told it. A pruning reads canvases, and drops rows."""
    pruned, prune = [], prism.HierarchicalSearch.prune
    monkeypatch.setattr(prism.HierarchicalSearch, "prune", lambda self, s, *more: pruned.append(s.nfe) or prune(self, s, *more))
    cpu, sim, each = both("prism", n=4, k=2, interval=3, search_from=0.3, search_to=1.0, threshold=None)
    check_equal(cpu, sim)
    assert len(pruned) % 2 == 0 and 2 <= len(pruned) // 2 < len(each) // 2
    pruned = pruned[len(pruned) // 2 :]  # those on the device
    assert [waits.total() for waits in each[1:]] == [
        3 if number in pruned else 1 for number in range(1, len(each))
    ]  # before the next forward


@pytest.mark.parametrize(
    "strategy, compile", [("fast-dllm", True), ("d2f", True), ("dkv", False), ("freedave", False), ("smoothing", True)]
)
@pytest.mark.parametrize("own", [{"cfg_scale": 0.7}, {"temperature": 0.8, "eos": "stop"}, {"template": 1}, {"dtype": torch.bfloat16}, {"int8": 1}], ids=str)  # fmt: skip
def test_so_do_guidance_sampling_templates_and_other_numbers(strategy, compile, own, monkeypatch):
    """Would catch the same in what few decodes run."""
    monkeypatch.setattr(padding, "FREE", 0)  # products of another size round otherwise

    def how(model):
        model = model.to(own.get("dtype", torch.float32))
        for name, module in list(model.named_modules()) if "int8" in own else ():
            if isinstance(module, Linear):
                model.set_submodule(name, Int8Linear(module.weight))
        return model

    settings = {name: own[name] for name in own if name not in ("dtype", "int8")}
    if "template" in own:
        hole = random_model(0).config.mask_token_id
        settings["template"] = [[1, 2, hole, hole, 3] + [hole] * 7, [hole] * 11, [5] + [hole] * 9 + [4]]
    cpu, sim, _ = both(strategy, how=how, compile=compile, **settings)
    check_equal(cpu, sim)


def test_a_checkpoint_is_read_onto_it(checkpoint, monkeypatch):
    """Would catch weights, or a scale, that are made on the CPU while a file is read."""
    want = load_weights.load_model(checkpoint, device="cpu", dtype=torch.float32, int8=True)
    monkeypatch.setattr(load_weights, "find_device", lambda name: torch.device("sim:0"))
    read = load_weights.read_tensors
    with pretended():
        monkeypatch.setattr(load_weights, "read_tensors", lambda file, device: ((name, wrap(tensor)) for name, tensor in read(file, "cpu")))
        model = load_weights.load_model(checkpoint, dtype=torch.float32, int8=True)
        assert {weight.device.type for weight in (*model.parameters(), *model.buffers())} == {"sim"}
        assert generate(on_device(model), PROMPTS, **SETTINGS).tokens.inner.equal(generate(want, PROMPTS, **SETTINGS).tokens)


# --- negative controls


def test_what_is_mixed_is_refused():
    """Without this every test above would pass for any code: a rule that makes a tensor on the CPU."""
    with pretended(), pytest.raises(RuntimeError, match=r"mixed with one of the device: .*test_pretended.py"):
        rule = lambda scores, candidates, window: candidates & (torch.ones(candidates.shape) > 0)
        generate(prepared(0, True), PROMPTS, Strategy(rule, cached("dual"), serial), **SETTINGS)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x[0, 0].item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: x.cpu(),
        lambda x: x[[0, 1]],
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.isin(x, torch.arange(50, device=x.device)),
        lambda x: range(5)[: x[0, 0].long()],
    ],
    ids=range(10),
)
def test_every_way_to_wait_is_counted(waiting):
    """Would catch a count that stays low because it does not see."""
    x = torch.eye(4)
    with pretended() as waits:
        waiting(wrap(x))
        assert waits.total() == 1, waits
        assert "test_pretended.py" in next(iter(waits))


@pytest.mark.parametrize(
    "free",
    [
        lambda x: x[torch.arange(2, device=x.device)],
        lambda x: x.argsort(descending=True),
        lambda x: x.sum() + 1.5,
        lambda x: torch.isin(x, torch.arange(3, device=x.device)),
        lambda x: torch.where(x > 0, x, 0).cumsum(-1),
        lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: x.new_zeros(3).fill_(2),
    ],
    ids=range(7),
)
def test_what_does_not_wait_is_not_counted(free):
    with pretended() as waits:
        free(wrap(torch.eye(4)))
        assert not waits.total(), waits


def test_nothing_is_left_behind():
    """Would catch a pretended device that changes what comes after it: generators, inference mode, gradients."""
    with pretended():
        pass
    assert torch.Generator("cpu").device.type == "cpu" and isinstance(torch.Generator(), torch.Generator)
    with torch.inference_mode():
        assert torch.ones(1).is_inference()
    weight = torch.ones(2, requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad.equal(torch.full((2,), 2.0))
