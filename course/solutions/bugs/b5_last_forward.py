"""A solution of bug 5."""

from dllm import decode


def holds(model) -> bool:
    """The r-th surest token of a forward has (r + 1)(1 - its confidence) within the factor."""
    for start in range(6):
        prompt = [start, 2 * start + 1, 7]
        for step in decode(model, prompt, gen_length=32, factor=0.5, threshold=None):
            confidence = step.scores.confidence[step.commit].sort(descending=True)[0]
            for place, sure in enumerate(confidence.tolist()):
                if place > 0 and (place + 2) * (1 - sure) > 0.5 + 1e-4:
                    return False
    return True
