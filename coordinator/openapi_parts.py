"""What all routes share in OpenAPI: errors with their codes, headers, how one proves who one is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from protocol.compatibility import VERSION_HEADER
from protocol.error_forms import all_errors
from protocol.errors import BrigadeError, ErrorBody
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import ErrorAnswer

REF: Final = "#/components/schemas/"
ERROR_ANSWER: Final = ErrorAnswer
WAITING = (409, 429, 503, 507)
"""Statuses of answers that may say when to ask again."""

VERSION: Final = {"$ref": "#/components/parameters/Version"}
IDEMPOTENCY_KEY: Final = {"$ref": "#/components/parameters/IdempotencyKey"}
IF_MATCH: Final = {"$ref": "#/components/parameters/IfMatch"}
IF_NONE_MATCH: Final = {"$ref": "#/components/parameters/IfNoneMatch"}

_ETAG = r'^"[0-9a-f]{16}-[0-9a-f]{0,16}"$'


def components(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The document's `components`."""
    return {
        "schemas": dict(sorted(schemas.items())),
        "parameters": _parameters(),
        "headers": _headers(),
        "responses": {f"Error{status}": _error(status, codes) for status, codes in _codes().items()},
        "securitySchemes": _security_schemes(),
    }


def error_statuses(errors: Iterable[type[BrigadeError]]) -> list[int]:
    """The statuses of these errors, each once."""
    return sorted({error.status for error in errors})


def _codes() -> dict[int, list[str]]:
    """By status, every code that an answer of this status may have."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for error in all_errors():
        found[error.status].add(error.code)
    return {status: sorted(codes) for status, codes in sorted(found.items())}


def _error(status: int, codes: list[str]) -> dict[str, Any]:
    example = ErrorAnswer(
        error=ErrorBody(code=codes[0], message="A sentence that says what is wrong and what to do.")
    )
    headers = {"Brigade-Request-Id": {"$ref": "#/components/headers/RequestId"}}
    if status in WAITING:
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    if status == 412:
        headers["ETag"] = {"$ref": "#/components/headers/CurrentETag"}
    return {
        "description": f"An error; its code is one of: {', '.join(codes)}.",
        "headers": headers,
        "content": {
            "application/json": {
                "schema": {
                    "allOf": [{"$ref": f"{REF}{ERROR_ANSWER.__name__}"}],
                    "properties": {"error": {"properties": {"code": {"enum": codes}}}},
                },
                "example": {"error": {"code": example.error.code, "message": example.error.message}},
            }
        },
    }


def _parameters() -> dict[str, Any]:
    major, _, minor = PROTOCOL_VERSION.partition(".")
    versions = [f"{major}.{older}" for older in range(int(minor) + 1)]
    return {
        "Version": {
            "name": VERSION_HEADER,
            "in": "header",
            "description": "The protocol version that the answer is to be in; without it 1.0, which lacks much.",
            "schema": {"type": "string", "enum": versions},
            "example": PROTOCOL_VERSION,
        },
        "IdempotencyKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "A new one for every new request, such as a UUID. The same again within 24 hours is "
            "answered as the first time, and carried out once.",
            "schema": {"type": "string", "minLength": 8, "maxLength": 128, "pattern": "^[!-~]{8,128}$"},
        },
        "IfMatch": {
            "name": "If-Match",
            "in": "header",
            "description": "The ETag that it was read with: 412 if an operator changed it since.",
            "schema": {"type": "string", "pattern": _ETAG},
        },
        "IfNoneMatch": {
            "name": "If-None-Match",
            "in": "header",
            "description": "The ETag that one has already: 304 if it is still the same.",
            "schema": {"type": "string", "pattern": _ETAG},
        },
    }


def _headers() -> dict[str, Any]:
    return {
        "ETag": {"description": "Of this state, for If-Match.", "schema": {"type": "string", "pattern": _ETAG}},
        "CurrentETag": {"description": "Of the state that it is in.", "schema": {"type": "string"}},
        "RetryAfter": {
            "description": "Seconds after which to ask again.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "RequestId": {
            "description": "What the coordinator's log calls this request.",
            "schema": {"type": "string"},
        },
    }


def _security_schemes() -> dict[str, Any]:
    def bearer(form: str, words: str) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": form, "description": words}

    return {
        "adminKey": bearer("brigade-admin", "An API key of kind admin (`coord key create --kind admin`)."),
        "apiKey": bearer("brigade", "An API key of either kind (`coord key create`)."),
        "sessionToken": bearer("itsdangerous", "What a worker was given when it joined."),
    }
