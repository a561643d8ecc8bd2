"""Errors as Ollama's API says them: `{"error": "..."}`."""

from __future__ import annotations

from client.gateway.bodies import json_bytes
from client.gateway.keys import ErrorShape
from client.gateway.openai_errors import openai_status
from client.gateway.rates import openai_rate_headers
from protocol.errors import BrigadeError

PREFIX = "/api/"


def error_line(error: BrigadeError) -> bytes:
    """What a stream ends with that fails."""
    return json_bytes({"error": error.message}) + b"\n"


OLLAMA_SHAPE = ErrorShape(
    prefix=PREFIX,
    body=lambda error: json_bytes({"error": error.message}),
    status=openai_status,
    rate_headers=openai_rate_headers,
)
