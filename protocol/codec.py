"""Messages to bytes and back. Unknown tags are refused, sizes are limited before anything is read.

Unknown fields are passed over, since a newer minor version may add some; `protocol.rest` says where they aren't.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

import msgspec

from protocol.choices import choices_at
from protocol.errors import InvalidRequestError, ProtocolError, ProtocolVersionError, TooLargeError
from protocol.messages import PROTOCOL_VERSION

MAX_CONTROL_BYTES = 4 * 2**20
"""Largest message on a control socket; an `Announce` of 10,000 files is under 1 MB."""

MAX_BODY_BYTES = 2**20
"""Largest JSON body of a request."""

_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")
_QUOTED_VALUE = re.compile(r"^(Invalid (?:enum )?value) (?:.*(?= - at `)|.*$)", re.DOTALL)
"""Of msgspec: the only reasons of its that repeat what they are about."""
_ENUM_PLACE = re.compile(r"Invalid enum value .* - at `([^`]*)`", re.DOTALL)
_LONG_NUMBER = re.compile(r"[0-9]{25,}")
"""JSON's numbers may have thousands of digits, and our own reasons repeat numbers."""

T = TypeVar("T")

_ENCODER = msgspec.msgpack.Encoder()


@cache
def _msgpack_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


@cache
def _json_decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def encode_message(message: msgspec.Struct) -> bytes:
    """The message as msgpack, tag included."""
    return _ENCODER.encode(message)


def decode_message(data: bytes | memoryview, kind: Any, *, max_bytes: int = MAX_CONTROL_BYTES) -> Any:
    """Read one message of the union `kind`.

    Raises:
        TooLargeError: more than `max_bytes`; nothing was read.
        ProtocolError: not such a message. The connection that sent it has to be closed.
    """
    if len(data) > max_bytes:
        raise TooLargeError(f"a message of {len(data)} bytes; the limit is {max_bytes}")
    try:
        return _msgpack_decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ProtocolError(f"not a message of this protocol: {_reason(exc)}") from exc


def encode_json(body: msgspec.Struct) -> bytes:
    """An HTTP body."""
    return msgspec.json.encode(body)


def decode_json(data: bytes, kind: type[T], *, max_bytes: int = MAX_BODY_BYTES) -> T:
    """Read an HTTP body.

    Raises:
        TooLargeError: more than `max_bytes`; nothing was read.
        InvalidRequestError: not such a body; the message names the field.
    """
    if len(data) > max_bytes:
        raise TooLargeError(f"a body of {len(data)} bytes; the limit is {max_bytes}")
    try:
        body: T = _json_decoder(cast(Hashable, kind)).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        reason = f"{_reason(exc)}{_choices(exc, kind)}"
        raise InvalidRequestError(f"the body is not a valid {kind.__name__}: {reason}") from exc
    return body


def _reason(exc: Exception) -> str:
    """What is wrong and where, without the value: the reason is logged, and what came may be anybody's words."""
    reason = _QUOTED_VALUE.sub(r"\1", str(exc))
    return _LONG_NUMBER.sub(lambda found: f"a number of {len(found[0])} digits", reason)


def _choices(exc: Exception, kind: Any) -> str:
    """The words of which one was wanted, if that is what is wrong."""
    found = _ENUM_PLACE.fullmatch(str(exc))
    choices = choices_at(kind, found[1]) if found is not None else ()
    *others, last = choices or ("",)
    return f": {', '.join(others)} or {last}" if others else f": {last}" if last else ""


def check_version(theirs: str) -> None:
    """Refuse another major version of the protocol; every minor of ours can be spoken with.

    Raises:
        ProtocolVersionError: theirs can't be spoken; the message names both and what to do.
    """
    found = _VERSION.fullmatch(theirs)
    if found is None or found[1] != PROTOCOL_VERSION.split(".", maxsplit=1)[0]:
        raise ProtocolVersionError(
            f"the other side speaks protocol version {theirs[:20]!r}, this side {PROTOCOL_VERSION}: "
            "install the same major version of Brigade on both"
        )
