"""The tokenizer of the tiny model: a domain word or a number up to LIMIT is one token.

Any other text falls back to bytes. Left out on purpose: merges learned from data. Pieces of words
or numbers would be written out of order by confidence-ordered decoding. A word carries the space
before it, as in GPT-2: decode(encode(text)) == text.

    " Tom has 12 apples." -> " Tom" " has" " 12" " apples" "."
"""

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from lab.save import write_folder
from lab.tasks import LIMIT

BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
SPECIAL = [BOS, EOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", MASK]
PIECE = r"\n\n| ?\p{L}+| ?\d{1,3}(?!\d)| ?\d| ?[^\s\p{L}\d]|\s"  # they cover every text
ROUND = 64  # the vocabulary is padded to a multiple of this: the head's matrix has an even shape

# The newlines stand inside expressions: jinja drops one that ends a template.
CHAT_TEMPLATE = r"""{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim \
+ '<|eot_id|>' }}{% endfor %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}""".replace("\\\n", "")


def domain_words() -> list[str]:
    """The pieces that are one token each: words.txt, the numbers, what the template writes.

    Not what some thousand problems happen to show: the ids stay when a task's sizes change.
    """
    words = {"\n\n", "user", "assistant", "system"}
    for word in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split():
        words |= {word} if word in ",.:" else {" " + word} if word.islower() else {word, " " + word}
    return sorted(words | {f"{space}{n}" for n in range(LIMIT + 1) for space in ("", " ")})


@functools.cache
def build() -> Tokenizer:
    """A BPE without merges: a piece of the vocabulary is one token, any other is its bytes."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(part for part, _ in level.pre_tokenize_str(word)) for word in domain_words()]
    tokens = dict.fromkeys(SPECIAL + sorted(level.alphabet()) + words)
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PIECE), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def save_tokenizer(folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face's tools read them."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
        "pad_token": EOS, "mask_token": MASK, "add_bos_token": False, "add_eos_token": False,
        "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    encoder, rest = build().to_str() + "\n", json.dumps(config, indent=1) + "\n"
    write_folder(folder, {"tokenizer.json": encoder, "tokenizer_config.json": rest})


def chat(prompt: str) -> str:
    """What the chat template renders for one user message."""
    return f"{BOS}{HEADER.format('user')}{prompt.strip()}<|eot_id|>{HEADER.format('assistant')}"
