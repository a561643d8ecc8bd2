"""Errors as OpenAI's API says them: `{"error": {"message", "type", "param", "code"}}` and its statuses."""

from __future__ import annotations

import msgspec

from client.gateway.faults import FieldError, ModelNotFoundError
from client.gateway.keys import ErrorShape
from client.gateway.rates import openai_rate_headers
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


def openai_error(error: BrigadeError, *, prompt_field: str | None = None) -> OpenAiErrorAnswer:
    """The error as OpenAI's clients read it; `prompt_field` has what may be too long for the model's context."""
    kind, code = _kind_and_code(error)
    message = error.message + _TOO_LONG if isinstance(error, ContextExceededError) else error.message
    param = _param(error, prompt_field)
    return OpenAiErrorAnswer(error=OpenAiError(message=message, type=kind, param=param, code=code))


def openai_status(error: BrigadeError) -> int:
    """The HTTP status; what HTTP clients don't know is answered as the caller's or as our fault."""
    if error.status in _KNOWN_STATUSES:
        return error.status
    return 400 if error.status < 500 else 503


def _shape(prefix: str, prompt_field: str | None) -> ErrorShape:
    def body(error: BrigadeError) -> bytes:
        return msgspec.json.encode(openai_error(error, prompt_field=prompt_field))

    return ErrorShape(prefix=prefix, body=body, status=openai_status, rate_headers=openai_rate_headers)


OPENAI_SHAPES = (
    _shape("/", None),
    _shape("/v1/chat/completions", "messages"),
    _shape("/v1/completions", "prompt"),
    _shape("/v1/responses", "input"),
    _shape("/v1/embeddings", "input"),
)
"""Whatever is asked for that no other API has is answered as OpenAI's."""


_TOO_LONG = " (context_length_exceeded: it exceeds the context window)"
"""Programs that shorten conversations by themselves (LangChain, coding agents) look for these words in the text."""
_CODES: dict[type[BrigadeError], str] = {
    ModelNotFoundError: "model_not_found",
    ContextExceededError: "context_length_exceeded",
    UnauthenticatedError: "invalid_api_key",
}
"""What OpenAI calls them; the others keep the name that they have here."""


def _param(error: BrigadeError, prompt_field: str | None) -> str | None:
    match error:
        case FieldError():
            return error.param
        case ModelNotFoundError():
            return "model"
        case ContextExceededError():
            return prompt_field
        case _:
            return None


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
