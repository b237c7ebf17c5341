"""Spiffy (arXiv 2509.18085): the drafts that came true most often when they were counted."""

import json
from pathlib import Path

from strategies import Strategy, named
from strategies.drafts import Graph, drafting
from strategies.fast_dllm import CacheSetting, Threshold

# what lab/calibrate.py found for the embedded model at one token a forward
CALIBRATED: Graph = (
    ((0, 0),), ((0, 0), (1, 0)), ((0, 0), (1, 0), (2, 0)), ((0, 0), (1, 0), (2, 0), (3, 0)),
    ((1, 0),), ((0, 0), (2, 0)), ((0, 0), (1, 0), (3, 0)),
)  # fmt: skip


def read_graph(file: str) -> Graph:
    """The drafts in a JSON file: a list of lists of pairs [i, j]."""
    try:
        graph = json.loads(Path(file).read_text())
        graph = tuple(tuple((i, j) for i, j in node) for node in graph)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"graph {file!r} cannot be read: {error}") from None
    numbers = [n for node in graph for pair in node for n in pair]
    if not all(type(n) is int and 0 <= n < 1000 for n in numbers):
        raise ValueError(f"graph {file!r} holds something else than pairs of whole numbers from 0")
    return graph


@named("spiffy", graph="tiny")  # on which it was counted
def spiffy(
    graph: str | None = None, threshold: Threshold = None, cache: CacheSetting = "dual"
) -> Strategy:
    """Spiffy (arXiv 2509.18085): as freedave, but the drafts are those that came true most often
    when they were counted.

    graph: a file that lab/calibrate.py wrote; none takes what it found for the embedded model at
        one token per forward
    """
    return drafting(CALIBRATED if graph is None else read_graph(graph), threshold, cache)
