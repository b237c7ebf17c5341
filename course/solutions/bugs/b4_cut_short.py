"""A solution of bug 4."""

from dllm import generate


def holds(model) -> bool:
    """Each row of a batch ends where it ends alone."""
    prompts = [[n % 30, (n + 3) % 30, (n + 6) % 30, (n + 9) % 30] for n in range(0, 56, 7)]
    settings = {"gen_length": 24, "block_length": 8, "threshold": 0.5, "eos": "stop"}
    together = generate(model, prompts, **settings).tokens
    alone = [generate(model, prompt, **settings).tokens[0] for prompt in prompts]
    return all(row.equal(own) for row, own in zip(together, alone))
