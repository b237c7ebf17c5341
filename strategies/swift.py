"""SWIFT (arXiv 2410.06916), for diffusion: drafts by the same network with layers left out."""

import re
from typing import Annotated

from strategies import Strategy, named, require
from strategies.drafts import chain, drafting
from strategies.fast_dllm import CacheSetting, Threshold


@named("swift")
def swift(
    depth: Annotated[int, (1, 100)] = 4,
    skip: str | None = None,
    threshold: Threshold = None,
    cache: CacheSetting = "dual",
) -> Strategy:
    """SWIFT (arXiv 2410.06916), for diffusion: as freedave, but the drafts are those of the same
    network with layers left out.

    depth: canvases a forward computes; 1 is no speculation
    skip: layers left out, such as 1,3; none takes every second one between the first and the last
    """
    if skip is None:
        return drafting(chain(depth), threshold, cache, slice(1, -1, 2))
    numbers = re.fullmatch(r"\d{1,6}(,\d{1,6})*", skip)
    require(numbers is not None, "skip", skip, "numbers of layers from 0, such as 1,3")
    return drafting(chain(depth), threshold, cache, tuple(map(int, skip.split(","))))
