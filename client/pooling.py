"""From a text's hidden states to one vector. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.embedding_settings import EmbeddingSettings, Pooling
from protocol.errors import InvalidRequestError
from protocol.manifest import ModelKind

Vector = NDArray[np.float32]
"""(size,)"""


def pooling_of(model: str, kind: ModelKind, settings: EmbeddingSettings | None) -> Pooling:
    """How the model's authors make a vector; where they say nothing, the mean of an encoder's, a decoder's last.

    Raises:
        InvalidRequestError: in a way that isn't done here.
    """
    if settings is not None and settings.unsupported:
        raise InvalidRequestError(
            f"the authors of {model} make its vectors by {settings.unsupported}, which isn't run here: say which "
            "pooling to use instead (mean, last or cls), but the vectors won't be theirs"
        )
    if settings is not None and settings.pooling is not None:
        return settings.pooling
    return "mean" if kind == "encoder" else "last"


def pooled(rows: NDArray[np.float32], pooling: Pooling) -> Vector:
    """One vector of the states (n_tokens, hidden_size) of all positions."""
    match pooling:
        case "mean":
            return np.asarray(rows.mean(axis=0, dtype=np.float64), dtype=np.float32)
        case "last":
            return np.asarray(rows[-1])
        case "cls":
            return np.asarray(rows[0])


def finished(vector: Vector, *, dimensions: int | None, normalize: bool) -> Vector:
    """The vector's first `dimensions`, and of length 1 if that is wanted.

    Only of models that were trained for it (Matryoshka) the first dimensions are any good alone.
    """
    cut = vector[:dimensions]
    length = float(np.linalg.norm(cut.astype(np.float64)))
    return (cut / length).astype(np.float32) if normalize and length > 0.0 else cut
