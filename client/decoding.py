"""Token ids to text, one at a time: never a broken character, never a character twice.

A token's text depends on the tokens before it (a character's bytes may be spread over several tokens; some
tokenizers put spaces between words), so a short window of tokens is decoded together and the part that was shown
is taken off. The library's own `DecodeStream` is not used: it fails for good at bytes that are no UTF-8, which a
model may well produce.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD_TOKENS = 64
"""A character has 4 bytes at most; a longer run is no text, and decoding it anew for each token would only cost."""


class TextStream:
    """The text of one generation: all pieces together are what the tokenizer makes of all ids but the special.

    Of special tokens, those of `shown` have the text that it says.

    Tokenizers whose decoder rewrites earlier text (WordPiece's clean-up) may differ in such places, and so may
    a run of more than 64 tokens that are no text.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Mapping[int, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._special = shown or {}
        self._window: list[int] = []
        """The tokens shown last, and those after them that aren't yet."""
        self._n_shown = 0
        """Tokens at the window's beginning whose text was shown."""
        self._shown = ""
        """Their text."""

    def push(self, token_id: int) -> str:
        """Take the next token; the text that can be shown now, often empty."""
        if token_id in self._special:
            before = self.flush()
            self._window, self._n_shown, self._shown = [], 0, ""
            return before + self._special[token_id]
        self._window.append(token_id)
        text = self._decoded(self._window)
        is_held = text.endswith(_REPLACEMENT) or len(text) <= len(self._shown)
        if is_held and len(self._window) - self._n_shown < _MAX_HELD_TOKENS:
            return ""  # in the middle of a character, or nothing to see
        return self._advance(text)

    def flush(self) -> str:
        """What is left, broken characters as replacement characters. Nothing may be pushed afterwards."""
        return self._advance(self._decoded(self._window))

    def _advance(self, text: str) -> str:
        piece = text[len(self._shown) :]
        # A whole character ends here, so a window that begins here decodes alike.
        self._window = self._window[self._n_shown :]
        self._n_shown = len(self._window)
        self._shown = self._decoded(self._window)
        return piece

    def _decoded(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)
