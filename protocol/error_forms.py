"""Errors in other forms: made of what came over the wire, as fields of the log; and what may stand in a message."""

from __future__ import annotations

from typing import Any, TypeVar

import protocol.coordinator_errors  # noqa: F401 - a twig of the tree, whose codes come over the wire too
from protocol.errors import (
    BrigadeError,
    ErrorBody,
    InternalError,
    OverLimitError,
    QuotaExceededError,
    ServiceError,
)

_LONGEST_NAME = 64

Refusal = TypeVar("Refusal", QuotaExceededError, OverLimitError)


def _leaf_classes(root: type[BrigadeError]) -> dict[str, type[BrigadeError]]:
    found = {root.code: root} if root is not BrigadeError else {}
    for child in root.__subclasses__():
        for code, cls in _leaf_classes(child).items():
            found.setdefault(code, cls)
    return found


def all_errors() -> tuple[type[BrigadeError], ...]:
    """One class of every code that there is."""
    return tuple(_leaf_classes(BrigadeError).values())


def error_from_body(body: ErrorBody) -> BrigadeError:
    """The exception that `body` stands for; an unknown code becomes an `InternalError` that names it."""
    cls = _leaf_classes(BrigadeError).get(body.code)
    if cls is None or cls is ServiceError:
        return InternalError(body.message, retry_after_s=body.retry_after_s)
    return cls(body.message, retry_after_s=body.retry_after_s)


def repeated(text: str) -> str:
    """What a caller sent, as an error may repeat it: whole if it can be a name, else its beginning.

    Errors are logged; an API key that was put where a name belongs must not be.
    """
    return repr(text if len(text) <= _LONGEST_NAME else text[:20] + "...")


def error_fields(error: BrigadeError) -> dict[str, Any]:
    """Fields for a log event about `error`."""
    return {"error_code": error.code, "error_message": error.message}


def by_limit(limit_name: str, error: Refusal) -> Refusal:
    """A refusal, with the limit that it is by: for who counts them."""
    error.limit_name = limit_name
    return error
