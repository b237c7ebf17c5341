"""The tokenizer of the tiny model: a domain word is one token, a number up to LIMIT is one token, and any other text falls back to bytes.

Left out on purpose: merges learned from data. Pieces of words or numbers would be written out of order by confidence-ordered decoding.
A word carries the space before it, as in GPT-2: decode(encode(text)) == text.

    " Tom has 12 apples." -> " Tom" " has" " 12" " apples" "."
"""

import functools
import json
import os
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from lab.tasks import LIMIT

SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|mdm_mask|>"]
PIECE = r"\n\n| ?\p{L}+| ?\d{1,3}(?!\d)| ?\d| ?[^\s\p{L}\d]|\s"  # what one token may be; together they cover every text
ROLES = ["user", "assistant", "system"]
ROUND = 64  # the vocabulary is padded to a multiple of this, so that the head's matrix has an even shape

# The newlines stand inside expressions: jinja drops one that ends a template.
CHAT_TEMPLATE = r"""{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}""".replace("\\\n", "")


@functools.cache
def domain_words() -> tuple[str, ...]:
    """The pieces that are one token each, sorted: words.txt, as they stand in a text, the numbers, and what the chat template writes.

    A list, and not what some thousand problems happen to show: the ids stay what they are when a task's sizes change.
    """
    words = {"\n\n", *ROLES}
    for word in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split():
        words |= {word} if word in ",.:" else {" " + word} if word.islower() else {word, " " + word}
    return tuple(sorted(words | {f"{space}{n}" for n in range(LIMIT + 1) for space in ("", " ")}))


def build() -> Tokenizer:
    """A BPE without merges: a piece that is in the vocabulary is one token, any other is spelled in bytes. No id is ever unknown."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["".join(piece for piece, _ in level.pre_tokenize_str(word)) for word in domain_words()]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(SPECIAL + alphabet + words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECE), "isolated"), level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face's tools read them."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mdm_mask|>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in (("tokenizer.json", tokenizer.to_str(pretty=False)), ("tokenizer_config.json", json.dumps(config, indent=1))):
        temporary = Path(folder, name + ".part")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, Path(folder, name))


def chat(prompt: str) -> str:
    """What the chat template renders for one user message."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    return f"<|startoftext|>{header.format('user')}{prompt.strip()}<|eot_id|>{header.format('assistant')}"
