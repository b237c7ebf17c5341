"""FreeDave (arXiv 2510.00294): each canvas is computed along with what may come of it."""

from typing import Annotated

from strategies import Strategy, named
from strategies.drafts import chain, drafting
from strategies.fast_dllm import CacheSetting, Threshold


@named("freedave")
def freedave(
    depth: Annotated[int, (1, 100)] = 4, threshold: Threshold = None, cache: CacheSetting = "dual"
) -> Strategy:
    """FreeDave (arXiv 2510.00294): each forward also computes where the next ones may lead; the
    same tokens in fewer forwards.

    depth: canvases a forward computes; 1 is no speculation
    """
    return drafting(chain(depth), threshold, cache)
