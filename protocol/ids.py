"""Identifiers and the block range: the nouns that every message is made of.

Ids are plain strings on the wire and distinct types in the code, so that a worker's id can't be handed where a
session's is wanted. This module knows nothing of how an id is made.
"""

from __future__ import annotations

import re
from typing import NewType

import msgspec

from protocol.errors import InvalidRequestError

CoordinatorId = NewType("CoordinatorId", str)
WorkerId = NewType("WorkerId", str)
SessionId = NewType("SessionId", str)
ModelName = NewType("ModelName", str)
Revision = NewType("Revision", str)
"""SHA-256 (64 hex digits) of a model's manifest."""
FileHash = NewType("FileHash", str)
"""SHA-256 (64 hex digits) of a file's bytes."""
KeyId = NewType("KeyId", str)
InviteId = NewType("InviteId", str)

MAX_BLOCKS = 10_000
"""No transformer published has a tenth of this; a larger number on the wire is a lie or a mistake."""
MAX_SESSION_ID_CHARS = 64

_RANGE = re.compile(r"(\d{1,5}):(\d{1,5})")
_MODEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


class BlockRange(msgspec.Struct, frozen=True, order=True):
    """The half-open range of transformer blocks [start, end), 0 <= start < end."""

    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuse an empty, negative or absurd range, also when it comes off the wire."""
        if not 0 <= self.start < self.end <= MAX_BLOCKS:
            # ValueError: msgspec turns it into a ValidationError when decoding
            raise ValueError(f"block range {self.start}:{self.end} is not 0 <= start < end <= {MAX_BLOCKS}")

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def contains(self, other: BlockRange) -> bool:
        """Whether every block of `other` is in this range."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: BlockRange) -> bool:
        """Whether the two ranges have a block in common."""
        return self.start < other.end and other.start < self.end


def is_session_id(text: str) -> bool:
    """Whether a session may be called so: what a database can't compare, or is endless, is no id of ours."""
    return text.isalnum() and text.isascii() and len(text) <= MAX_SESSION_ID_CHARS


def block_range_from_text(text: str) -> BlockRange:
    """Parse `a:b` as an operator writes it (`--blocks 0:10`).

    Raises:
        InvalidRequestError: the text is not two numbers, or the range is empty; the message says which.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequestError(f"{text!r} is not a block range; write start:end, half-open, such as 0:10")
    try:
        return BlockRange(int(match[1]), int(match[2]))
    except ValueError as exc:
        raise InvalidRequestError(str(exc)) from exc


def checked_model_name(text: str) -> ModelName:
    """The name as a `ModelName`: letters, digits, dot, dash, underscore, at most 64, safe in a path and a URL.

    Raises:
        InvalidRequestError: the name has other characters or is too long.
    """
    if _MODEL_NAME.fullmatch(text) is None:
        raise InvalidRequestError(
            f"{text[:20]!r} can't be a model's name: 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning and ending in a letter or digit"
        )
    return ModelName(text)
