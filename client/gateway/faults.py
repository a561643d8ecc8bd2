"""Errors that name what of a request is wrong, whatever the API's shape for saying so."""

from __future__ import annotations

from protocol.errors import InvalidRequestError, NotFoundError


class FieldError(InvalidRequestError):
    """A field of the request is missing, unknown, of another type, or holds what can't be done."""

    def __init__(self, message: str, *, param: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        """The field, `messages[2].content`; None: the body as a whole."""
        self.field_code = code
        """What OpenAI calls it; None: nothing in particular."""


class ModelNotFoundError(NotFoundError):
    """The cluster has no model of this name, or this key may not know of it."""
