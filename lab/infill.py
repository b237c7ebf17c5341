"""A text with holes, as `--infill "12 + ___ = 19."` gives it, to token ids.

`___` is one mask, `___5` are five. Words begin with their space in the vocabularies of language
models, so that the space before a hole belongs to what is written there. Left out on purpose: holes
inside a word, and holes whose length the model is to find.
"""

import re

from lab.files import whole_text

HOLE = re.compile(r" ?(?<!_)___(?!_)(\d*)")
MOST = 100_000  # masks in one hole: no model is longer


def template(text: str, tokenizer, mask_id: int) -> list[int]:
    """The ids of a text in which every hole is so many mask tokens; ValueError if there is none."""
    ids, end = [], 0
    for hole in HOLE.finditer(whole_text(text, "text to fill in")):
        count = int(hole[1][:9] or 1)
        if not 1 <= count <= MOST:
            stands = f"the hole {hole[0].strip()} stands for {count} tokens"
            raise ValueError(f"{stands}: expected 1 to {MOST}")
        ids += tokenizer.encode(text[end : hole.start()]) + [mask_id] * count
        end = hole.end()
    if not end:
        raise ValueError("the text has no hole: ___ is one token to fill in, ___5 are five")
    return ids + tokenizer.encode(text[end:])


def beginning(tokenizer) -> list[int]:
    """What stands before a text that answers no prompt: the token that begins a text."""
    if "bos_token" not in tokenizer.names:
        missing = "this checkpoint has no token that begins a text"
        raise ValueError(f"{missing}: give a --prompt beside --infill")
    return tokenizer.encode(tokenizer.names["bos_token"])
