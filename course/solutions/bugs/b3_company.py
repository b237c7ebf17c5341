"""A solution of bug 3."""

from dllm import generate


def holds(model) -> bool:
    """A short prompt is answered beside a long one as it is alone."""
    for start in range(4):
        short, long = [start, 5], [start + i for i in range(9)]
        alone = generate(model, short, gen_length=32, eos="fill")
        beside = generate(model, [short, long], gen_length=32, eos="fill")
        if alone.tokens[0, -32:].tolist() != beside.tokens[0, -32:].tolist():
            return False
    return True
