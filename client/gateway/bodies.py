"""Bodies of requests: read within limits, decoded strictly, and told by the field what is wrong with them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from aiohttp import hdrs, web

from client.gateway.body_room import KEPT_BODY
from client.gateway.faults import FieldError
from protocol.codec import decode_json
from protocol.errors import DeadlineExceededError, InvalidRequestError, TooLargeError

MAX_REQUEST_BYTES = 16 * 2**20
"""A prompt of four million tokens."""
BODY_TIMEOUT_S = 60.0
"""For a whole body: 16 MiB over a slow line."""
JSON_TYPES = frozenset({"application/json", "application/octet-stream"})
"""The second is what aiohttp takes a missing header for."""

_PLACE = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_CUT_SHORT = "Input data was truncated"
"""What msgspec says of it; a packed body whose end is missing is unpacked as far as it goes, without an error."""
_NAMED = re.compile(r"(?:unknown|required) field `([^`]*)`")

T = TypeVar("T")


class ApiBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is asked: an unknown field is refused, since to pass it over would be to do another thing."""


def said_bytes(request: web.Request) -> int:
    """How long a request says that its body is, as far as that may be; 0: it doesn't say."""
    return min(request.content_length or 0, MAX_REQUEST_BYTES)


async def read_body(request: web.Request) -> bytes:
    """The body's bytes, unpacked.

    Raises:
        TooLargeError: over `MAX_REQUEST_BYTES`; the rest was not read.
        OverloadedError: too much of others is kept; likewise.
        FieldError: it isn't encoded as it says.
        DeadlineExceededError: it didn't come within `BODY_TIMEOUT_S`.
    """
    if (request.content_length or 0) > MAX_REQUEST_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            await _read_into(body, request)
    except web.RequestPayloadError as exc:
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "")[:40] or "chunked"
        # what hadn't been read yet can't be any more, but is counted
        raise FieldError(_broken_words(encoding, request.content.total_bytes), param=None) from exc
    except TimeoutError as exc:
        raise DeadlineExceededError(f"the body didn't come within {BODY_TIMEOUT_S:.0f} s") from exc
    return bytes(body)


async def _read_into(body: bytearray, request: web.Request) -> None:
    """Counted as it comes: what it is unpacked to nobody says beforehand."""
    while piece := await request.content.readany():
        body += piece
        if len(body) > MAX_REQUEST_BYTES:
            raise _too_large()
        request[KEPT_BODY].is_of(len(body))


def _broken_words(encoding: str, n_read_bytes: int) -> str:
    """Of a body that can't be unpacked to its end. What was read of it says whether it ever was what it says."""
    if not n_read_bytes:
        return f"the body can't be unpacked: it isn't {encoding} as the headers say, or was damaged on its way"
    return (
        f"the body breaks off: {n_read_bytes:,} bytes of it could be read, what follows isn't {encoding} as the "
        "headers say; it was damaged or cut short on its way, so send it again"
    )


def _too_large() -> TooLargeError:
    return TooLargeError(f"the body is over {MAX_REQUEST_BYTES} bytes: send less")


async def read_json(request: web.Request, kind: type[T], *, types: frozenset[str] | None = JSON_TYPES) -> T:
    """The body as a `kind`; `types` are the content types that are taken, None: all.

    Raises:
        FieldError: not such a body; names the field.
    """
    if types is not None and request.content_type not in types:
        raise FieldError(f"the body is {request.content_type[:80]}; send application/json", param=None)
    return decoded(await read_body(request), kind)


def decoded(data: bytes, kind: type[T]) -> T:
    """The body as a `kind`. FieldError: not such a body."""
    try:
        return decode_json(data, kind, max_bytes=MAX_REQUEST_BYTES)
    except InvalidRequestError as exc:
        if not data.strip():
            raise FieldError("the body is empty; the request belongs into it, as JSON", param=None) from exc
        raise _field_error(exc.__cause__, len(data)) from exc


def _field_error(cause: BaseException | None, n_bytes: int) -> FieldError:
    """What the decoder found, with the field's name by itself. The value isn't repeated."""
    reason = str(cause)
    if reason == _CUT_SHORT:
        words = (
            f"the body ends in the middle of its JSON, after {n_bytes:,} bytes: it was cut short; send all of it"
        )
        return FieldError(words, param=None)
    place = _PLACE.search(reason)
    parent = place[1] if place is not None else ""
    named = _NAMED.search(reason)
    if named is not None:
        parent = f"{parent}.{named[1]}" if parent else named[1]
    what = _PLACE.sub("", reason)
    if named is not None and "unknown" in what:
        what = "Unknown field"
    elif named is not None:
        what = "Missing required field"
    elif what.startswith("Invalid "):
        what = what.split(" '", maxsplit=1)[0]  # an enum's value may be anybody's words
    param = parent or None
    code = "unknown_parameter" if what == "Unknown field" else None
    return FieldError(
        f"{what}: {param}" if param else f"the body is no such request: {what}", param=param, code=code
    )


def refuse_set(body: msgspec.Struct, reasons: Mapping[str, str]) -> None:
    """Refuse fields that the API has and this gateway hasn't; unset and null ones are passed over.

    Raises:
        FieldError: one is set; the reason says what to do.
    """
    for name, reason in reasons.items():
        value = getattr(body, name)
        if value is not None and value is not msgspec.UNSET:
            raise FieldError(f"{name} isn't supported: {reason}", param=name, code="unsupported_parameter")


def refuse_more(n: int, most: int, param: str, what: str) -> None:
    """Refuse a long list before it is looked through, which would keep everybody waiting. FieldError: too long."""
    if n > most:
        raise FieldError(f"{param} has {n:,} {what}; at most {most:,} are taken", param=param)


@cache
def _encoder() -> msgspec.json.Encoder:
    return msgspec.json.Encoder()


def json_bytes(value: Any) -> bytes:
    """Any value as JSON."""
    return _encoder().encode(value)


def json_answer(body: Any) -> web.Response:
    """An answer that is JSON."""
    return web.Response(body=json_bytes(body), content_type="application/json")
