"""Errors as Anthropic's API says them: `{"type": "error", "error": {"type", "message"}}` and its statuses."""

from __future__ import annotations

import msgspec

from client.gateway.bodies import json_bytes
from client.gateway.keys import ErrorShape
from client.gateway.rates import anthropic_rate_headers
from protocol.errors import BrigadeError, ContextExceededError

PREFIX = "/v1/messages"
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OVERLOADED = 529
_PASSING = frozenset({502, 503, 507})
"""Ours: what may be over in a moment."""
_TOO_LONG = "prompt is too long: "
"""Programs that shorten conversations by themselves look for these words."""


class AnthropicError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong."""

    type: str
    message: str


class AnthropicErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer that is an error; also an event of a stream that fails."""

    error: AnthropicError
    type: str = "error"


def anthropic_status(error: BrigadeError) -> int:
    """The HTTP status, one of those that Anthropic's API has."""
    if error.status in _TYPES:
        return error.status
    if error.status in _PASSING:
        return _OVERLOADED
    return 400 if error.status < 500 else 500


def anthropic_error(error: BrigadeError) -> AnthropicErrorAnswer:
    """The error as Anthropic's clients read it."""
    kind = _TYPES[anthropic_status(error)]
    message = _TOO_LONG + error.message if isinstance(error, ContextExceededError) else error.message
    return AnthropicErrorAnswer(error=AnthropicError(type=kind, message=message))


def error_event(error: BrigadeError) -> bytes:
    """What a stream ends with that fails."""
    return b"event: error\ndata: " + json_bytes(anthropic_error(error)) + b"\n\n"


ANTHROPIC_SHAPE = ErrorShape(
    prefix=PREFIX,
    body=lambda error: json_bytes(anthropic_error(error)),
    status=anthropic_status,
    rate_headers=anthropic_rate_headers,
)
