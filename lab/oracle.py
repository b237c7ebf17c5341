"""Models without error: the exact marginals of a small language, behind the interface of the network.

Every string of the language is enumerated, the equally likely ones that agree with what is written and visible are kept, and each cell's
marginal is counted among them. Whatever comes out wrong is then the decoder's doing, and a stale cache is stale here, too: it holds the
tokens that were on the canvas when they were last looked at.

    python dllm.py --model oracle:permutation-6 --prompt go --gen-length 6 --block-length 6 --temperature 1

Letters: N strings of the language, G their length, B batch, Q positions computed, K slots visible, V vocabulary.
"""

import copy
import re
from itertools import permutations, product

import torch
from torch import Tensor

from model import Config, LLaDA, Pass


def alternate(length: int) -> list[str]:
    """A and B in turn, starting with either: one written cell decides all."""
    return ["".join("AB"[(i + first) % 2] for i in range(length)) for first in (0, 1)]


def permutation(length: int) -> list[str]:
    """Every symbol once: the more are written together, the surer two of them collide."""
    return ["".join(order) for order in permutations("ABCDEFG"[:length])]


def echo(length: int) -> list[str]:
    """A name, filler, and the name again: two cells far apart that must agree."""
    return [name + "." * (length - 2) + name for name in "ABCD"]


def bits(length: int) -> list[str]:
    """Free bits: no cell depends on another, so that nothing written together can be wrong."""
    return ["".join(string) for string in product("AB", repeat=length)]


def brackets(length: int) -> list[str]:
    """Brackets that match."""

    def balanced(string: str) -> bool:
        depth = [string[:i].count("(") - string[:i].count(")") for i in range(length + 1)]
        return min(depth) >= 0 and depth[-1] == 0

    return [string for string in map("".join, product("()", repeat=length)) if balanced(string)]


LANGUAGES = {
    "alternate": (alternate, 12),
    "permutation": (permutation, 7),
    "echo": (echo, 12),
    "bits": (bits, 12),
    "brackets": (brackets, 12),
}
BOS, EOS, MASK = "<bos>", "<eos>", "<mask>"


class Memory:
    """The tokens that each slot held when it was last computed: what a K/V cache is to the network. int64 [B, S].

    An oracle has one layer, and asks as much of every slot.
    """

    def __init__(self, batch: int, slots: int, mask: int):
        self.tokens, self.demand = torch.full((batch, slots), mask), torch.zeros(1, batch, slots)

    def keep(self, batch: Tensor) -> None:
        self.tokens, self.demand = self.tokens[batch], self.demand[:, batch]

    def pick(self, batch: Tensor) -> "Memory":
        other = copy.copy(self)
        other.keep(batch)
        return other


class Oracle:
    """A language as a model, and as its own tokenizer. The prompt is always one token, and cell i of the string is slot i + 1."""

    device, dtype, indices = torch.device("cpu"), torch.float32, LLaDA.indices

    def __init__(self, name: str):
        """name: language-length, such as permutation-6; ValueError if there is no such language, or none of this length."""
        match = re.fullmatch(r"(\w+)-(\d+)", name)
        language, longest = LANGUAGES.get(match[1] if match else "", (None, 0))
        length = int(match[2]) if match else 0
        strings = language(length) if language and 2 <= length <= longest else []
        if not strings:
            known = ", ".join(f"{other}-2 to -{most}" for other, (_, most) in LANGUAGES.items())
            raise ValueError(f"no oracle for {name!r}: choose one of {known} (brackets only of even lengths)")
        self.names = {"bos_token": BOS}
        self.symbols = [*sorted(set("".join(strings))), BOS, EOS, MASK]
        self.strings = torch.tensor([[self.symbols.index(c) for c in string] for string in strings])  # [N, G]
        V = len(self.symbols)
        self.config = Config(2, 0, 1, 0, V, mask_token_id=V - 1, eos_token_id=V - 2, max_sequence_length=length + 1)

    def new_cache(self, batch: int, slots: int, features: bool = False) -> Memory:
        return Memory(batch, slots, self.config.mask_token_id)

    def encode_chat(self, messages) -> list[int]:
        return self.encode(BOS)

    def encode(self, text: str) -> list[int]:
        symbols = [text] if text == BOS else list(text)
        if unknown := [symbol for symbol in symbols if symbol not in self.symbols]:
            raise ValueError(f"{unknown[0]!r} is no symbol of this language: {' '.join(self.symbols[:-3])}")
        return [self.symbols.index(symbol) for symbol in symbols]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(self.symbols[i] for i in ids if not skip_special_tokens or i < len(self.symbols) - 3)

    def __call__(
        self, ids: Tensor, at: Pass = Pass(), cache: Memory | None = None, start: Tensor | None = None, added: None = None
    ) -> Tensor:
        """Log marginals [B, R, V] of `at.rows` among `at.query`, given the tokens in the visible slots; arguments as for LLaDA.forward.

        There is nothing to measure, one layer, which is never computed in part nor skipped, and no embedding to add anything to.
        """
        visible, own = at.visible, at.own
        query = self.indices(slice(0, ids.shape[1]) if at.query is None else at.query)  # [Q]
        slots, seen = query, ids
        if cache is not None:
            cache.tokens[:, query] = ids if own is None else torch.where(own, ids, cache.tokens[:, query])
            slots = self.indices(slice(0, cache.tokens.shape[1]) if visible is None else visible)  # [K], or [1, B, K]
            slots = slots if slots.dim() == 1 else slots[0]
            seen = cache.tokens.gather(1, slots.expand(len(ids), -1))  # [B, K]
        cells = self.strings.T[(slots - 1).clamp(min=0)]  # [K, N], or [B, K, N]
        agrees = (seen[..., None] == cells) | (seen[..., None] == self.config.mask_token_id) | (slots == 0)[..., None]  # [B, K, N]
        sees = torch.ones(len(query), slots.shape[-1], dtype=torch.bool) if at.mask is None else at.mask
        possible = torch.stack([agrees[:, allowed].all(1) for allowed in sees[at.rows]], dim=1)  # [B, R, N]
        possible |= ~possible.any(-1, keepdim=True)  # nothing agrees: an earlier step has left the language, and all strings are as good
        wanted = self.strings.T[(query[at.rows] - 1).clamp(min=0)]  # [R, N]
        symbol = torch.nn.functional.one_hot(wanted, len(self.symbols)).float()  # [R, N, V]
        return torch.einsum("brn,rnv->brv", possible.float(), symbol).div(possible.sum(-1, keepdim=True)).log()

    def contains(self, answers: Tensor) -> Tensor:
        """Which answers int64 [B, G] are strings of the language, bool [B]."""
        return (answers[:, None] == self.strings).all(-1).any(-1)

    def one_step_validity(self) -> float:
        """The probability that cells drawn independently from their marginals make a string: what one forward for everything gives."""
        marginals = (self.strings[..., None] == torch.arange(len(self.symbols))).double().mean(0)  # [G, V]
        return marginals.gather(1, self.strings.T).prod(0).sum().item()
