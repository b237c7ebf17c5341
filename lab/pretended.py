"""A pretended GPU: tensors on the device "sim" compute on the CPU, refuse to be mixed with a CPU's,
and count where the host would wait.

    with pretended():
        model = on_device(load_model(folder))
        result = generate(model, prompts, "d2f", compile=False)
    print(waits)

It shows what a machine without a GPU does not: a tensor made on the wrong device, and a value that
Python asks for. It waits where CUDA does: for a value or a number of elements, and for a copy in
either direction that was not asked to go on alone. Left out on purpose: time, numerics, gradients.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

waits: Counter[str] = Counter()  # "operator: file:line" -> times
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "_unique2"}
COPIES = {"copy", "_to_copy"}
INDEXING = {"index", "index_put", "_index_put_impl"}


class Sim(Tensor):
    """A tensor of the device, around one of the CPU, `inner`."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        own = {"dtype": inner.dtype, "device": torch.device("sim:0")} | layout
        outer = Tensor._make_wrapper_subclass(cls, inner.size(), **own)
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        return run(function, arguments, named or {})


def wrap(tensor: Tensor) -> Sim:
    return tensor if isinstance(tensor, Sim) else Sim(tensor)


def unwrap(tensor):
    return tensor.inner if isinstance(tensor, Sim) else tensor


def each(change: Callable, value):
    """A value with all in its lists and tuples changed; torch's tree_map takes thrice as long."""
    if isinstance(value, (tuple, list)):
        return type(value)([each(change, part) for part in value])
    return change(value)


def is_sim(device) -> bool:
    return device is not None and torch.device(device).type == "sim"


def waited(name: str) -> None:
    """Count a wait, and where this project asked for it."""
    frames = [f for f in traceback.extract_stack() if "site-packages" not in f.filename]
    frames = [f for f in frames if f.filename != __file__]
    waits[f"{name}: {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}"] += 1


def does_wait(function, name: str, arguments: tuple, named: dict) -> bool:
    """Whether CUDA's way to run this operator makes the host wait."""
    if name in COPIES:
        target = named.get("device") if name == "_to_copy" else arguments[0].device
        source = arguments[0 if name == "_to_copy" else 1]
        blocking = not named.get("non_blocking", len(arguments) > 2 and arguments[2])
        crosses = target is not None and is_sim(target) != isinstance(source, Sim)
        return crosses and blocking and (source.dim() > 0 or isinstance(source, Sim))
    if name == "isin" and isinstance(arguments[1], Tensor):  # it sorts what is not few
        return arguments[1].numel() >= 10 * arguments[0].numel() ** 0.145
    if name == "repeat_interleave":
        return isinstance(arguments[-1], Tensor) and named.get("output_size") is None
    masks = name in INDEXING and any(
        isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in arguments[1]
    )
    return masks or name in WAITING


def run(function, arguments: tuple, named: dict):
    """An operator, on the tensors inside."""
    name = function._schema.name.split("::")[1].rstrip("_")
    tensors: list[Tensor] = []
    each(
        lambda t: tensors.append(t) if isinstance(t, Tensor) else None, [arguments, *named.values()]
    )
    ours = [t for t in tensors if isinstance(t, Sim)]
    if ours and name not in COPIES and any(t.dim() for t in tensors if not isinstance(t, Sim)):
        waited(name)
        (place,) = [*waits][-1:]
        raise RuntimeError(f"a CPU tensor is mixed with one of the device: {place}")
    on_device = is_sim(named["device"]) if named.get("device") is not None else bool(ours)
    on_device = isinstance(arguments[0], Sim) if name == "copy" else on_device
    if (ours or name in COPIES and on_device) and does_wait(function, name, arguments, named):
        waited(name)
    named = named | ({"device": torch.device("cpu")} if named.get("device") is not None else {})
    named = {key: each(unwrap, value) for key, value in named.items()}
    out = function(*each(unwrap, arguments), **named)
    if function._schema.name.endswith("_") and isinstance(arguments[0], Tensor):
        return arguments[0]
    return each(lambda t: Sim(t) if isinstance(t, Tensor) and on_device else t, out)


class Operators(TorchDispatchMode):
    """Those that are called with no tensor of the device, too: they may make one."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        return run(function, arguments, named or {})


class Functions(TorchFunctionMode):
    """What Python does before an operator is called: numbers that become tensors."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = dict(named or {})
        if function in (torch.tensor, torch.as_tensor) and is_sim(named.get("device")):
            named.pop("device")
            waited("tensor")
            return wrap(function(*arguments, **named))
        if function is Tensor.tolist and isinstance(arguments[0], Sim):
            waited("tolist")
            return arguments[0].inner.tolist()
        if function is F.scaled_dot_product_attention:  # which would be taken apart otherwise
            with sdpa_kernel([*SDPBackend.__members__.values()]):  # the CPU's own is one of them
                out = function(*map(unwrap, arguments), **named)
            return wrap(out) if isinstance(arguments[0], Sim) else out
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(arguments[0], Sim):
            index = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
            arguments = (arguments[0], tuple(map(lift, index)), *arguments[2:])
        return function(*arguments, **named)


def lift(index):
    """A list of places becomes a tensor of the device, for which the host waits."""
    if not isinstance(index, list):
        return index
    waited("list")
    return Sim(torch.tensor(index, dtype=torch.bool if index and index[0] is True else torch.int64))


def on_device(model: nn.Module) -> nn.Module:
    """Put a model's weights on the device. They become plain tensors, without gradients."""
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                del module._parameters[name]
                module.__dict__[name] = wrap(weight.detach())
        module._buffers.update({name: wrap(buffer) for name, buffer in module._buffers.items()})
    return model


class OnCpu(torch.Generator):
    """A generator for tensors of the device, which draws where they are computed."""

    def __new__(cls, device="cpu") -> torch.Generator:
        return cls.__base__()


@contextlib.contextmanager
def pretended() -> Iterator[Counter]:
    """The device is there, and counts in `waits`, which starts empty."""
    if torch._C._get_privateuse1_backend_name() != "sim":
        torch.utils.backend_registration._setup_privateuseone_for_python_backend("sim")
    waits.clear()
    with (
        patch("torch.cuda._lazy_init", lambda: None),
        patch("torch.Generator", OnCpu),
        # what wraps a tensor cannot be made in this mode
        patch("torch._C._InferenceMode", lambda mode: contextlib.nullcontext()),
        torch.no_grad(),
        Functions(),
        Operators(),
    ):
        yield waits
