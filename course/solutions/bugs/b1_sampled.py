"""A solution of bug 1."""

from dllm import decode


def holds(model) -> bool:
    """The confidence of a token is the same whatever the seed that drew it."""
    settings = {"gen_length": 32, "block_length": 32, "temperature": 1.0}
    for start in range(5):
        prompt = [start, 2 * start + 1, 7]
        firsts = [next(decode(model, prompt, seed=seed, **settings)).scores for seed in (1, 2)]
        same = firsts[0].token == firsts[1].token
        apart = (firsts[0].confidence - firsts[1].confidence).abs()
        if (apart[same] > 1e-4).any():
            return False
    return True
