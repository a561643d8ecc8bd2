"""Frames of the data plane: a message and, with some, raw tensor bytes. Bytes in, frames out; no I/O.

Layout, all integers big-endian: magic `BG`, format version (1 byte), zero (1 byte), header length (4 bytes),
payload length (8 bytes), header (msgpack), payload. Lengths are checked before anything is allocated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import msgspec

from protocol.codec import decode_message, encode_message
from protocol.errors import ProtocolError, TooLargeError
from protocol.messages import DataMessage

MAGIC = b"BG"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 128 * 1024
"""An `OpenSession` with the tickets of a hundred hops is under 64 kB; an `AttachTail` with the longest constraint
and as many biases as are taken is under 96 kB. Up to 1.1 it was 64 kB; what is longer is of 1.2 anyway."""
MAX_PAYLOAD_BYTES = 64 * 2**20
"""A chunk of 2,048 tokens of 8,192 float32 is 64 MB."""
MAX_CLIENT_PAYLOAD_BYTES = 4 * 2**20
"""Between a client and a worker: a prompt of a million ids, or 128 positions of 8,192 float32."""

_PREFIX = struct.Struct(">2sBBIQ")
PREFIX_BYTES = _PREFIX.size
MAX_JOINED_BYTES = 32 * 1024
"""Of several frames in one WebSocket message together, at most: less than what every reader takes of one."""
MAX_FRAME_BYTES = PREFIX_BYTES + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """A message and its payload (empty if it has none). The payload is only valid as long as its buffer."""

    message: DataMessage
    payload: bytes | memoryview = b""


def encode_frame(message: DataMessage, payload: bytes | memoryview = b"") -> bytes:
    """One frame of the data plane as bytes. Raises as `encode_parts`."""
    return encode_parts(message, payload)


def encode_parts(message: msgspec.Struct, payload: bytes | memoryview = b"") -> bytes:
    """One frame as bytes, of whatever message.

    Raises:
        TooLargeError: header or payload over the limit; send smaller chunks.
    """
    header = encode_message(message)
    n_payload = payload.nbytes if isinstance(payload, memoryview) else len(payload)
    _check_lengths(len(header), n_payload)
    return b"".join((_PREFIX.pack(MAGIC, FORMAT_VERSION, 0, len(header), n_payload), header, payload))


def frame_bytes(prefix: bytes | memoryview) -> int:
    """How long the frame is that begins with these `PREFIX_BYTES`: for streams, which don't say where one ends.

    Raises:
        ProtocolError: not the beginning of a frame.
        TooLargeError: a length over its limit.
    """
    return _boundaries(memoryview(prefix))[1]


def decode_frame(data: bytes | bytearray | memoryview) -> Frame:
    """The one frame of the data plane that `data` is, and nothing more. Raises as `decode_parts`."""
    return Frame(*decode_parts(data, DataMessage))


def decode_frames(data: bytes | bytearray | memoryview) -> list[Frame]:
    """All frames in a WebSocket message, one behind the other; at least one. Since 1.2 there may be several.

    Raises as `decode_parts`; `TooLargeError` if several have over `MAX_JOINED_BYTES`: to read them takes its time.
    """
    view, frames = memoryview(data), []
    while (end := _boundaries(view)[1]) < len(view):
        if len(view) > MAX_JOINED_BYTES:
            raise TooLargeError(f"several frames of {len(view)} bytes in one message; at most {MAX_JOINED_BYTES}")
        frames.append(decode_frame(view[:end]))
        view = view[end:]
    frames.append(decode_frame(view))
    return frames


def decode_parts(data: bytes | bytearray | memoryview, kind: Any) -> tuple[Any, memoryview]:
    """The message of the union `kind` and the payload of the one frame that `data` is, whole and nothing more.

    Raises:
        ProtocolError: cut short, trailing bytes, or not a frame.
        TooLargeError: a length over its limit.
    """
    view = memoryview(data)
    header_end, end = _boundaries(view)
    if len(view) != end:
        raise ProtocolError(f"a frame of {end} bytes came as {len(view)}")
    message = decode_message(view[PREFIX_BYTES:header_end], kind, max_bytes=MAX_HEADER_BYTES)
    return message, view[header_end:end]


def _check_lengths(n_header: int, n_payload: int) -> None:
    if n_header > MAX_HEADER_BYTES or n_payload > MAX_PAYLOAD_BYTES:
        raise TooLargeError(
            f"a frame with a header of {n_header} bytes and a payload of {n_payload}; "
            f"the limits are {MAX_HEADER_BYTES} and {MAX_PAYLOAD_BYTES}"
        )


def _boundaries(prefix: memoryview) -> tuple[int, int]:
    """Ends of header and payload, counted from the frame's first byte."""
    if len(prefix) < PREFIX_BYTES:
        raise ProtocolError(f"a frame cut after {len(prefix)} bytes")
    magic, version, zero, n_header, n_payload = _PREFIX.unpack_from(prefix)
    if magic != MAGIC or zero != 0:
        raise ProtocolError("these bytes are not a frame of the data plane")
    if version != FORMAT_VERSION:
        raise ProtocolError(f"frame format {version}; this side reads {FORMAT_VERSION}")
    _check_lengths(n_header, n_payload)
    header_end = PREFIX_BYTES + n_header
    return header_end, header_end + n_payload
