"""A byte-level BPE tokenizer of 260 and a few tokens, and the files that a chat model with it would have."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
_MERGES = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n")]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def tiny_tokenizer() -> Tokenizer:
    """It adds <s> in front of plain text."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in _MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def ids_of(text: str) -> list[int]:
    """The text's ids, without <s>."""
    return list(tiny_tokenizer().encode(text, add_special_tokens=False).ids)


def tiny_files(*, is_chat: bool = True) -> dict[str, bytes]:
    """The model's auxiliary files by name."""
    files = {
        "tokenizer.json": tiny_tokenizer().to_str().encode(),
        "tokenizer_config.json": json.dumps({"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}}).encode(),
        "config.json": json.dumps({"eos_token_id": 1}).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [1, 3], "temperature": 0.5}).encode(),
    }
    if is_chat:
        files["chat_template.jinja"] = CHAT_TEMPLATE.encode()
    return files
