"""How a model's authors make one vector of a text: what is packed of it with the model, for clients."""

from __future__ import annotations

from typing import Literal

import msgspec

from protocol.errors import UntrustedFileError

EMBEDDING_FILE = "embedding.json"
"""Among a model's small files, if its authors said anything."""

Pooling = Literal["mean", "last", "cls"]


class EmbeddingSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What sentence-transformers' files said."""

    pooling: Pooling | None = None
    """Of all positions the mean, or the last position's states, or the first's."""
    unsupported: str = ""
    """What else belongs to the vectors, which isn't run here; empty if nothing does."""
    max_tokens: int | None = None
    """Longest text that the authors made vectors of."""


def decode_embedding_settings(data: bytes) -> EmbeddingSettings:
    """Read the packed file.

    Raises:
        UntrustedFileError: it is malformed.
    """
    try:
        return msgspec.json.decode(data, type=EmbeddingSettings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UntrustedFileError(f"the model's {EMBEDDING_FILE} is malformed: {exc}") from exc
