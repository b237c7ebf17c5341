"""A solution of bug 6."""

from dllm import generate


def holds(model) -> bool:
    """What is counted is the answer, without its prompt."""
    for length in (1, 4, 40):
        result = generate(model, [7] * length, gen_length=32)
        if result.counters()["tokens"] != len(result.answer()):
            return False
    return True
