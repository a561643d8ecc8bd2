"""Guess the tokens that come next: what followed the last few tokens when they stood in the text before. Pure.

Prompt lookup, as it is known: answers repeat names, code and quotations of their prompts, and themselves. Nothing
is indexed: a search through the text's bytes takes microseconds, and a stream that never repeats pays no more.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

LOOKUP_TOKENS = (3, 2, 1)
"""How many last tokens are looked for, the most first: a longer match is likelier to go on alike."""
MAX_MATCHED = 16
"""Matched tokens beyond so many tell nothing new."""

_BYTES = array("i").itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Tokens that may come next, and how many of those before them stood before the same tokens already."""

    token_ids: tuple[int, ...]
    n_matched: int


class Text:
    """The tokens of one session, to be searched."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data) // _BYTES

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add tokens."""
        self._data += array("i", token_ids).tobytes()

    def draft(self, n_tokens: int) -> Draft | None:
        """So many tokens that may come next; None if the last one is new to the text.

        What follows the latest match runs into the end of the text if that repeats itself: it is repeated then.
        """
        for n_matched in LOOKUP_TOKENS:
            found = self._last_match(n_matched)
            if found is not None:
                end = found + n_matched
                token_ids = self._tokens(end, min(end + n_tokens, len(self)))
                n_repeats = -(-n_tokens // len(token_ids))
                return Draft(token_ids=(token_ids * n_repeats)[:n_tokens], n_matched=self._n_alike(end))
        return None

    def _last_match(self, n_tokens: int) -> int | None:
        """Where the last `n_tokens` stand before, as late as possible."""
        if len(self) <= n_tokens:
            return None
        pattern = bytes(self._data[-n_tokens * _BYTES :])
        at = self._data.rfind(pattern, 0, len(self._data) - _BYTES)
        while at % _BYTES and at > 0:  # across the border of two tokens
            at = self._data.rfind(pattern, 0, at + len(pattern) - 1)
        return None if at < 0 else at // _BYTES

    def _n_alike(self, end: int) -> int:
        """How many tokens before `end` are those before the text's end."""
        n_compared = min(end, MAX_MATCHED)
        earlier = self._tokens(end - n_compared, end)[::-1]
        last = self._tokens(len(self) - n_compared, len(self))[::-1]
        pairs = zip(earlier, last, strict=True)
        return next((index for index, (old, new) in enumerate(pairs) if old != new), n_compared)

    def _tokens(self, start: int, end: int) -> tuple[int, ...]:
        return tuple(memoryview(self._data).cast("i")[start:end])
