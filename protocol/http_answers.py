"""Answers of HTTP servers, read within limits and turned into our errors. Knows nothing of who asks what."""

from __future__ import annotations

import re

import aiohttp
import msgspec

from protocol.codec import MAX_BODY_BYTES
from protocol.errors import BrigadeError, ErrorBody, TooLargeError, UnreachableError, error_from_body
from protocol.rest import ErrorAnswer

_MAX_MESSAGE_CHARS = 2000
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


async def read_body(response: aiohttp.ClientResponse, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The answer's whole body.

    Raises:
        TooLargeError: it is longer than `max_bytes`; the rest was not read.
    """
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > max_bytes:
            response.close()
            raise TooLargeError(f"{response.url.host} answered with more than {max_bytes} bytes")
    return bytes(data)


def error_of(response: aiohttp.ClientResponse, body: bytes) -> BrigadeError:
    """The error that an answer with a status other than success stands for.

    The text in it may come from a stranger: it is cut, and nothing in it can move a terminal's cursor.
    """
    try:
        error = msgspec.json.decode(body, type=ErrorAnswer).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UnreachableError(
            f"{response.url.origin()} answers {response.method} {response.url.path} with HTTP status "
            f"{response.status}, not as a Brigade program does: check the address and port, and whether a proxy is "
            "in between"
        )
    text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", error.message)[:_MAX_MESSAGE_CHARS]
    return error_from_body(ErrorBody(code=error.code, message=text, retry_after_s=error.retry_after_s))
