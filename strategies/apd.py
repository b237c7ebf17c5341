"""APD (arXiv 2506.00413): as many tokens as a model of the next token confirms."""

from model import LLaDA
from strategies import Count, Share, Strategy, named
from strategies.guides import Reader, left_to_right


@named("apd", guide="tiny-ar")
def apd(
    guide: LLaDA | None = None,
    share: Share = 0.7,
    recompute: int | None = 16,
    lookahead: Count = 100,
) -> Strategy:
    """APD (arXiv 2506.00413): from left to right, as many tokens as a model of the next token
    confirms in one forward.

    guide: the second model, with the same vocabulary: loaded in Python, a folder or a Hugging Face
        id on the command line
    share: R; of the model's own logits in the mixture that confirms its tokens, the rest being the
        guide's; 1 confirms all
    recompute: W; positions before those written last that are computed anew; none takes all
    lookahead: M; masks that a forward sees and may write
    """
    return left_to_right(Reader(guide, share, 1, correct=False), recompute, lookahead)
