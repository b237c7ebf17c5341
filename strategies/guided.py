"""Guided diffusion (FlashDLM, arXiv 2505.21467): up to where another model disagrees."""

from model import LLaDA
from strategies import Count, Strategy, named
from strategies.guides import Reader, left_to_right


@named("guided", guide="tiny-ar")
def guided(
    guide: LLaDA | None = None, top: Count = 5, recompute: int | None = 0, lookahead: Count = 32
) -> Strategy:
    """Guided diffusion (FlashDLM, arXiv 2505.21467): from left to right, up to the first token of
    which a model of the next token would not think.

    guide: as in apd
    top: of how many of the guide's first choices a token must be one; 1 for the guide's own text
    recompute: as in apd
    lookahead: as in apd
    """
    return left_to_right(Reader(guide, 0.0, top, correct=True), recompute, lookahead)
