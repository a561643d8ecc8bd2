"""What single tokens stand for: bytes, since a character may be spread over several tokens."""

from __future__ import annotations

import re

from tokenizers import Tokenizer


class TokenBytes:
    """Of one model's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = b"ByteLevel" in tokenizer.decoder.__getstate__() if tokenizer.decoder else False
        self._special = {
            token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }

    def of(self, token_id: int) -> bytes:
        """The token's bytes; none for an id that the tokenizer doesn't have."""
        if (special := self._special.get(token_id)) is not None:
            return special.encode()
        piece = self._tokenizer.id_to_token(token_id) or ""
        if self._is_byte_level and all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        if (byte := _BYTE_TOKEN.fullmatch(piece)) is not None:
            return bytes.fromhex(byte[1])
        return piece.replace(_SENTENCEPIECE_SPACE, " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: what can be printed stands for itself, the rest for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


_BYTE_OF = _byte_level_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SENTENCEPIECE_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
