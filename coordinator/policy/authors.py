"""Authors of models whom operators trust: a key, and what the operator calls whoever holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.author_keys import AuthorKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """One author. The name is the operator's own: what signatures say of their signers proves nothing."""

    key: AuthorKey
    name: str
    added_s: float
    """Seconds since 1970, UTC."""
    added_by: str
    """The operator's key."""


Authors = Mapping[AuthorKey, Author]
