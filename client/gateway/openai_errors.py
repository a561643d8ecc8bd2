"""Errors as OpenAI's API says them: `{"error": {"message", "type", "param", "code"}}` and its statuses."""

from __future__ import annotations

import msgspec

from client.gateway.faults import FieldError, ModelNotFoundError
from client.gateway.keys import ErrorShape
from protocol.errors import (
    BrigadeError,
    ContextExceededError,
    QuotaExceededError,
    RequestError,
    UnauthenticatedError,
)

LONG_S = 3600.0
"""A quota that is used up for longer than this isn't one that a client waits for."""
_KNOWN_STATUSES = frozenset({400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504})


class OpenAiError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAiErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer that is an error; also what a stream ends with that fails."""

    error: OpenAiError


def openai_error(error: BrigadeError) -> OpenAiErrorAnswer:
    """The error as OpenAI's clients read it."""
    kind, code = _kind_and_code(error)
    param = error.param if isinstance(error, FieldError) else _PARAMS.get(type(error))
    return OpenAiErrorAnswer(error=OpenAiError(message=error.message, type=kind, param=param, code=code))


def openai_status(error: BrigadeError) -> int:
    """The HTTP status; what HTTP clients don't know is answered as the caller's or as our fault."""
    if error.status in _KNOWN_STATUSES:
        return error.status
    return 400 if error.status < 500 else 503


OPENAI_SHAPE = ErrorShape(
    prefix="/", body=lambda error: msgspec.json.encode(openai_error(error)), status=openai_status
)

_PARAMS: dict[type[BrigadeError], str] = {ModelNotFoundError: "model", ContextExceededError: "messages"}


_CODES: dict[type[BrigadeError], str] = {
    ModelNotFoundError: "model_not_found",
    ContextExceededError: "context_length_exceeded",
    UnauthenticatedError: "invalid_api_key",
}
"""What OpenAI calls them; the others keep the name that they have here."""


def _kind_and_code(error: BrigadeError) -> tuple[str, str | None]:
    match error:
        case FieldError():
            return "invalid_request_error", error.field_code
        case QuotaExceededError():
            is_long = error.retry_after_s is None or error.retry_after_s > LONG_S
            code = "insufficient_quota" if is_long else "rate_limit_exceeded"
            return code, code
        case _:
            kind = "invalid_request_error" if isinstance(error, RequestError) else "server_error"
            return kind, _CODES.get(type(error), error.code)
