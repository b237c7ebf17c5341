"""The compiled step: the same tokens as the eager one, for every strategy, in few programs, with one wait for the device a forward."""

import json
import shutil
import tempfile
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import compiled
import dllm
import kernels
import padding
from compiled import Compiled
from conftest import random_model, random_prompt
from dllm import decode, generate
from model import Pass
from padding import positions, size
from strategies import STRATEGIES

SETTINGS = {"gen_length": 24, "block_length": 8}
PROMPTS = [random_prompt(number, 4 + number) for number in range(5)]  # padded to 6 rows, and to fewer when some are finished
CASES = [
    ("llada", {}),
    *(("fast-dllm", {"cache": cache}) for cache in ("none", "prefix", "dual", "vicinity", "frozen")),
    ("fast-dllm", {"cache": "dual", "cfg_scale": 0.5}),
    ("localleap", {}),
    ("streaming", {"window_size": 6}),
    ("streaming", {"window_size": 6, "cache": "none"}),
    ("d2f", {}),
    ("d2f", {"cache": "none"}),
    ("ar", {"block_length": 1}),
    ("smoothing", {}),
    ("dkv", {}),
    ("sparse", {}),  # whose layers run in a way of their own, and see slots of their own
    ("dllm-cache", {}),  # the same, of other positions each
    ("mars", {}),  # and other ones in each layer
    ("d3llm", {}),
    ("freedave", {}),
    ("swift", {"skip": "0"}),
    ("apd", {"block_length": 1, "guide": random_model(1)}),
    ("prism", {"n": 4, "k": 2}),
]
CASES = [case for case in CASES if case[0] in STRATEGIES]


@pytest.fixture(scope="module")
def step():
    """A random model whose compiled step compiles nothing: shapes, padding and memory are as they would be, and it takes no time."""
    model = random_model(0)
    model.fast = Compiled(model, compile=lambda function, **options: function)
    return model


@pytest.fixture
def scores_as_they_are(monkeypatch):
    monkeypatch.setattr(Compiled, "score", lambda self, *given: kernels.score(*given))


plain_scores = pytest.mark.usefixtures("scores_as_they_are")


def traced(n_layers: int, backend):
    """A random model whose layers are traced as always, and then given to this backend instead of the code generator."""
    torch._dynamo.reset()
    model = random_model(0, n_layers)
    model.fast = Compiled(model, compile=partial(torch.compile, backend=backend))
    return model


@plain_scores
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("strategy, own", CASES, ids=[name + "".join(f"-{own.get('cache', '')}") for name, own in CASES])
def test_every_strategy_writes_the_same_tokens(step, strategy, own, batch):
    """Would catch padding that is seen, slots or rows that are mixed up, and a cache that a shorter batch loses."""
    settings = SETTINGS | own
    prompts = PROMPTS[-batch:]
    eager, fast = (generate(step, prompts, strategy, compile=choice, **settings) for choice in (False, True))
    assert fast.tokens.equal(eager.tokens) and fast.written.equal(eager.written) and fast.rows == eager.rows
    assert not step.fast.broken


def test_confidences_are_spread(step):
    """Without spread, the test above would hold for any logits."""
    sure = torch.cat([s.scores.confidence[s.candidates] for s in decode(step, PROMPTS, "fast-dllm", **SETTINGS)])
    assert (sure < 0.5).any() and (sure > 0.9).any() and sure.std() > 0.1


@plain_scores
def test_a_wrong_slot_changes_the_tokens(step, monkeypatch):
    """Negative control: with the query's slots shifted by one, the tokens must differ."""
    eager = generate(step, PROMPTS, "fast-dllm", cache="dual", compile=False, **SETTINGS)
    step.fast.last = None, Pass(), None
    right = padding.spread
    monkeypatch.setattr(padding, "spread", lambda n, to, device: right(n, to, device).sub(int(n > 8)).clamp(min=0))
    assert not generate(step, PROMPTS, "fast-dllm", cache="dual", compile=True, **SETTINGS).tokens.equal(eager.tokens)


@plain_scores
def test_nothing_is_compiled_twice():
    """Would catch a guard on a length, a block's number, a layer or a cache: for three layers there are two programs of each size."""
    count = [0]

    def backend(graph, inputs):
        count[0] += 1
        return graph.forward

    model = traced(3, backend)
    ask = lambda length, strategy, **own: generate(model, random_prompt(7, length), strategy, cache="dual", compile=True, **SETTINGS | own)
    ask(33, "fast-dllm")
    assert count == [4] and len(model.fast.programs) == 2  # all positions and the block, each as a last layer, too
    ask(34, "fast-dllm")
    ask(37, "localleap")
    ask(40, "saber")
    ask(41, "fast-dllm", gen_length=16)
    assert count == [4] and not model.fast.broken
    ask(60, "fast-dllm", steps=24, threshold=None)  # the control: more slots
    assert count == [8]


def test_a_batch_that_shrinks_needs_few_programs():
    """Would catch a program for every number of rows: 12 rows that finish one by one pass through six sizes."""
    assert [size(n) for n in range(1, 13)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12]
    assert [positions(n) for n in (1, 2, 16, 17, 25, 33, 49, 64, 65, 100, 128, 129)] == [1, 16, 16, 24, 32, 40, 56, 64, 80, 112, 128, 160]


@plain_scores
def test_two_decodes_at_a_time_have_caches_of_their_own(step):
    """Would catch memory that is lent twice: the decodes take turns, each must end as if alone."""
    ask = lambda prompt: decode(step, prompt, "fast-dllm", cache="dual", compile=True, **SETTINGS)
    alone = [[s.x.clone() for s in ask(prompt)][-1] for prompt in PROMPTS[:2]]
    streams, last = [ask(prompt) for prompt in PROMPTS[:2]], [None, None]
    while any(steps := [next(stream, None) for stream in streams]):
        last = [s.x.clone() if s else x for s, x in zip(steps, last)]
    assert all(a.equal(b) for a, b in zip(alone, last))


def test_a_cache_that_shrinks_keeps_its_strides(step):
    """Would catch a program for each number of rows that is left, which guards on them; and rows that are mixed up."""
    cache, new = step.fast.new_cache(5, 40), step.fast.new_cache(2, 40)
    assert cache.k.shape[1:4:2] == (6, 64)
    cache.k.normal_()
    before = cache.k.clone()
    cache.keep(torch.tensor([0, 3]))
    assert cache.k.stride() == new.k.stride() and cache.k.equal(before[:, [0, 3]])
    picked = cache.pick(torch.tensor([1, 1, 0, 0, 1]))
    assert type(picked) is type(cache) and picked.k.equal(before[:, [3, 3, 0, 0, 3, 3]])


@plain_scores
def test_time_spent_on_compiling_is_told_and_not_counted(capsys, monkeypatch):
    """Would catch a first decode that looks slow because it compiled, or fast because a forward went with that, and silence about it."""
    seconds = [0.0]
    monkeypatch.setattr(compiled.time, "perf_counter", lambda: seconds[0])

    def slow(graph, inputs):
        def program(*arguments):
            seconds[0] += 1
            return graph.forward(*arguments)

        seconds[0] += 100
        return program

    result = generate(traced(1, slow), PROMPTS[0], "llada", compile=True, **SETTINGS)
    assert result.seconds == result.nfe > 0
    assert capsys.readouterr().err == "compiled forwards of 1 x 32 positions over 32 slots, 16 with logits, uncached in 101.0 s\n"


@plain_scores
def test_what_cannot_be_compiled_runs_eagerly_after_one_line(capsys):
    """Would catch a crash, silence, or a line for each forward."""

    def broken(graph, inputs):
        raise RuntimeError("no such backend\nand a long trace")

    model = traced(1, broken)
    eager = generate(model, PROMPTS, "fast-dllm", compile=False, **SETTINGS)
    assert generate(model, PROMPTS, "fast-dllm", compile=True, **SETTINGS).tokens.equal(eager.tokens)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "staying eager" in err


# --- waits for the device -------------------------------------------------------------------------------------------------------------


class Waits(TorchFunctionMode):
    """Counts what would make the host wait for a GPU: a value, or a number of elements, that Python asks a tensor for."""

    NAMES = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique", "masked_select")

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        indices = args[1] if name in ("__getitem__", "__setitem__") else ()
        if name in self.NAMES or any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in (indices if type(indices) is tuple else (indices,))
        ):
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


class Hidden(TorchDispatchMode):
    """The same of what C++ asks for on its own."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal") or masks:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


def waits(model, strategy: str, compile: bool, **own) -> tuple[int, int]:
    """How often the host waits in a decode, the start left out, and its forwards."""
    stream = decode(model, PROMPTS[:1], strategy, compile=compile, **SETTINGS | own)
    next(stream)
    nfe = 0
    with Waits() as seen, Hidden() as hidden:
        for _ in stream:
            nfe += 1
    return max(seen.count.total(), hidden.count.total()), nfe


@plain_scores
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    "strategy, own",
    [("llada", {}), ("fast-dllm", {"cache": "dual"}), ("streaming", {"window_size": 6}), ("localleap", {}), ("ar", {"block_length": 1})],
)
def test_a_forward_waits_once(step, strategy, own, compile):
    """Would catch a value that is read in the loop: the host then cannot launch the next forward while the device computes."""
    count, forwards = waits(step, strategy, compile, **own)
    assert forwards > 3 and 0 < count <= forwards + 1  # once more where the last row leaves the batch


def test_waits_are_seen(step):
    """Negative control: a rule that reads one value waits twice."""
    from strategies import Strategy
    from strategies.fast_dllm import cached
    from strategies.llada import serial

    def reading(scores, candidates, window):
        return scores.confidence >= (0.9 if scores.confidence.max() > 0 else 0.8)

    count, forwards = waits(step, Strategy(reading, cached("dual"), serial), False)
    assert count >= 2 * forwards


# --- with the code generator ----------------------------------------------------------------------------------------------------------

compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)


@pytest.fixture(scope="module")
def generated():
    torch._dynamo.reset()
    return random_model(2, n_layers=1)


def allocated(call) -> int:
    """Bytes that a call allocates, in all. From the trace: the profiler's sums leave out what is freed in the operator that
    allocated it, and so all buffers of compiled code."""
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(profile_memory=True) as seen:
            call()
        seen.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    return sum(max(0, event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")


@compiler
def test_generated_code_writes_the_same_tokens(generated, capsys):
    """Would catch a fusion that changes a result: a batch of two with padding, over the block and over all, and the scores."""
    # a token a forward: were one row done before the other, a third program would be compiled
    settings = {"cache": "dual", "threshold": None, "steps": 32, "gen_length": 32, "block_length": 16}
    prompts = [random_prompt(0, 450), random_prompt(1, 440)]
    eager, fast = (generate(generated, prompts, "fast-dllm", compile=choice, **settings) for choice in (False, True))
    assert fast.tokens.equal(eager.tokens) and fast.written.equal(eager.written)
    assert "staying eager" not in capsys.readouterr().err and len(generated.fast.programs) == 2

    step, block, start = generated.fast, slice(450, 466), torch.tensor([0, 10])
    cache, ids = step.new_cache(2, 482), torch.tensor([random_prompt(0, 16)] * 2)
    whole = 2 * cache.k.nbytes
    with torch.inference_mode():
        call = lambda: step(ids, Pass(block, slice(0, 482), rows=slice(0, 16)), cache, start)
        before = len(step.programs)
        call()
        assert len(step.programs) == before
        copying = lambda: (cache.k.clone(), cache.v.clone(), call())
        assert allocated(call) < whole < allocated(copying)  # keys and values are written in place


@compiler
def test_compiled_scores_equal_eager_ones(capsys):
    """Would catch a fusion that changes the result, and a silent fall back to eager."""
    fast = partial(kernels.score, run=Compiled(random_model(0)).fused)  # a CPU's own are eager
    for shape in [(2, 8, 40), (3, 4, 57)]:
        logits = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 6
        logits[..., 3] = -torch.inf
        noise = kernels.gumbel(logits, 1.0, torch.Generator().manual_seed(0))
        for given in ((logits,), (logits, noise)):
            ours, eager = fast(*given), kernels.score(*given)
            for name in ("token", "doubt", "margin", "entropy"):
                torch.testing.assert_close(getattr(ours, name), getattr(eager, name), rtol=1e-5, atol=1e-6)
    assert "staying eager" not in capsys.readouterr().err


@compiler
def test_an_interrupted_compile_is_made_again(tmp_path, monkeypatch):
    """Would catch runs that stay eager for ever because a process was ended while it wrote a library. Control: without another try they do.
    What the process itself remembers is forgotten, and the broken libraries lie in a copy of the cache: as for a new process."""
    from torch._inductor import utils

    def tried(folder: Path) -> str | None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        torch._dynamo.reset()
        utils.clear_caches()
        score = torch.compile(lambda x: (x.exp() + 1).sum(-1), dynamic=True)
        return compiled.first(lambda: score(torch.randn(4, 50)))

    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert tried(whole) is None
    shutil.copytree(whole, torn)
    assert (libraries := list(torn.rglob("*.so")))
    for library in libraries:
        library.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(utils, "fresh_cache", lambda delete: nullcontext())
        assert "staying eager" in tried(torn)
    assert tried(torn) is None


def test_without_a_compiler_it_says_so_once_and_stays_eager(monkeypatch, capsys):
    """Would catch a crash, or silence, on a machine that cannot compile."""

    def broken(function, **options):
        def call(*arguments):
            raise RuntimeError("No working C++ compiler found\nand a long trace")

        return call

    model = random_model(0)
    eager = generate(model, PROMPTS, compile=False, **SETTINGS)
    monkeypatch.setattr("torch._inductor.utils.fresh_cache", lambda delete: nullcontext())
    model.fast = Compiled(model, compile=broken)
    assert generate(model, PROMPTS, compile=True, **SETTINGS).tokens.equal(eager.tokens)
    assert capsys.readouterr().err == "cannot be compiled, staying eager: No working C++ compiler found\n"


@plain_scores
def test_memory_is_checked_with_its_padding(step, monkeypatch):
    """Would catch a check that passes a decode whose padded cache then does not fit: 5 rows of 32 slots are held as 6 rows of 64."""
    asked = []
    monkeypatch.setattr(dllm, "check_memory", lambda what, bytes, device: asked.append(bytes))
    for compile in (False, True):
        dllm.prepare(step, PROMPTS, "llada", SETTINGS | {"compile": compile})
    cells, c = 8 * step.config.vocab_size * 16, step.config
    slot = 2 * c.n_layers * c.kv_heads * c.head_width * 4
    assert asked == [5 * ((8 + 24) * slot + cells), 6 * (64 * slot + cells)]
