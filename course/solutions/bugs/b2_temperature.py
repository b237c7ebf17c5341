"""A solution of bug 2."""

from dllm import generate


def holds(model) -> bool:
    """A temperature that is nearly 0 decodes as 0 does: the same tokens in as many forwards."""
    for start in range(3):
        prompt = [start, 2 * start + 1, 7]
        cold, greedy = (
            generate(model, prompt, gen_length=32, temperature=temperature)
            for temperature in (1e-5, 0.0)
        )
        if not cold.tokens.equal(greedy.tokens) or cold.nfe != greedy.nfe:
            return False
    return True
