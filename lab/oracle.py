"""Models without error: the exact marginals of a small language, behind the network's interface.

Every string of the language is enumerated, the equally likely ones that agree with what is written
and visible are kept, and each cell's marginal is counted among them. Whatever comes out wrong is
then the decoder's doing, and a stale cache is stale here, too: it holds the tokens that were on the
canvas when they were last looked at.

    python dllm.py --model oracle:permutation-6 --prompt go --gen-length 6 --block-length 6

Letters: N strings of the language, G their length, B batch, Q positions computed, R of these with
logits, K slots visible, V vocabulary.
"""

import re
from collections.abc import Callable, Iterable
from itertools import permutations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Cache, Config, LLaDA, Pass


def balanced(brackets: str) -> bool:
    while "()" in brackets:
        brackets = brackets.replace("()", "")
    return not brackets


# Name -> the strings of a length, and the greatest length.
LANGUAGES: dict[str, tuple[Callable[[int], Iterable[str]], int]] = {
    # A and B in turn, starting with either: one written cell decides all
    "alternate": (lambda n: [("AB" * n)[first:][:n] for first in (0, 1)], 12),
    # every symbol once: the more are written together, the surer two of them collide
    "permutation": (lambda n: map("".join, permutations("ABCDEFG"[:n])), 7),
    # a name, filler, and the name again: two cells far apart that must agree
    "echo": (lambda n: [name + "." * (n - 2) + name for name in "ABCD"], 12),
    # free bits: no cell depends on another, so that nothing written together can be wrong
    "bits": (lambda n: map("".join, product("AB", repeat=n)), 12),
    # brackets that match
    "brackets": (lambda n: filter(balanced, map("".join, product("()", repeat=n))), 12),
}
BOS, EOS, MASK = "<bos>", "<eos>", "<mask>"


class Memory(Cache):
    """The cache of an oracle of one layer: the token each slot held when it was last computed."""

    def __init__(self, batch: int, slots: int, mask: int):
        self.tokens = torch.full((1, batch, slots), mask)  # [layers, B, S]


class Oracle:
    """A language as a model and its tokenizer. The prompt is one token: cell i is slot i + 1."""

    device, dtype, indices = torch.device("cpu"), torch.float32, LLaDA.indices

    def __init__(self, name: str):
        """name: language-length, such as permutation-6; ValueError if there is no such language."""
        language, _, length = name.partition("-")
        strings_of, longest = LANGUAGES.get(language, (None, 0))
        G = int(length) if re.fullmatch("[0-9]+", length) else 0
        strings = list(strings_of(G)) if 2 <= G <= longest else []
        if not strings:
            known = ", ".join(f"{other}-2 to -{most}" for other, (_, most) in LANGUAGES.items())
            raise ValueError(f"no oracle for {name!r}: choose one of {known} (even for brackets)")
        self.names = {"bos_token": BOS}
        self.symbols = [*sorted(set("".join(strings))), BOS, EOS, MASK]
        self.strings = torch.tensor([list(map(self.symbols.index, s)) for s in strings])  # [N, G]
        V = len(self.symbols)
        self.config = Config(2, 1, 1, 0, V, V - 1, V - 2, max_sequence_length=G + 1)

    def encode_chat(self, messages) -> list[int]:
        return self.encode(BOS)

    def encode(self, text: str) -> list[int]:
        symbols = [text] if text == BOS else list(text)
        if unknown := [symbol for symbol in symbols if symbol not in self.symbols]:
            known = " ".join(self.symbols[:-3])
            raise ValueError(f"{unknown[0]!r} is no symbol of this language: {known}")
        return [self.symbols.index(symbol) for symbol in symbols]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        special = len(self.symbols) - 3
        return "".join(self.symbols[i] for i in ids if i < special or not skip_special_tokens)

    def new_cache(self, batch: int, slots: int) -> Memory:
        return Memory(batch, slots, self.config.mask_token_id)

    def __call__(
        self, ids: Tensor, at: Pass = Pass(), cache: Memory | None = None, start=None, added=None
    ) -> Tensor:
        """Log marginals [B, R, V] of `at.rows` among `at.query`, given the tokens in visible slots.

        Arguments as for LLaDA.forward; there are no layers to skip, nor embeddings to add to.
        """
        query = self.indices(slice(0, ids.shape[1]) if at.query is None else at.query)  # [Q]
        slots, seen = query, ids
        if cache is not None:
            tokens = cache.tokens[0]
            new = ids if at.own is None else torch.where(at.own, ids, tokens[:, query])
            tokens[:, query] = new
            every = slice(0, tokens.shape[1])
            slots = self.indices(every if at.visible is None else at.visible)  # [K]
            seen = tokens[:, slots]  # [B, K]
        cells = self.strings.T[(slots - 1).clamp(min=0)]  # [K, N]
        free = (seen == self.config.mask_token_id) | (slots == 0)  # [B, K]
        agrees = (seen[..., None] == cells) | free[..., None]  # [B, K, N]
        sees = torch.ones(len(query), len(slots), dtype=torch.bool) if at.mask is None else at.mask
        possible = torch.stack([agrees[:, own].all(1) for own in sees[at.rows]], dim=1)  # [B, R, N]
        # Where nothing agrees an earlier step has left the language, and all strings are as good.
        possible |= ~possible.any(-1, keepdim=True)
        wanted = self.strings.T[(query[at.rows] - 1).clamp(min=0)]  # [R, N]
        symbol = F.one_hot(wanted, len(self.symbols)).float()  # [R, N, V]
        counts = torch.einsum("brn,rnv->brv", possible.float(), symbol)
        return counts.div(possible.sum(-1, keepdim=True)).log()

    def contains(self, answers: Tensor) -> Tensor:
        """Which answers int64 [B, G] are strings of the language, bool [B]."""
        return (answers[:, None] == self.strings).all(-1).any(-1)

    def one_step_validity(self) -> float:
        """The probability that cells drawn from their marginals make a string: that of one step."""
        marginals = F.one_hot(self.strings, len(self.symbols)).double().mean(0)  # [G, V]
        return marginals.gather(1, self.strings.T).prod(0).sum().item()
