"""Frames: whole, with trailing bytes, cut, altered, over the limits."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError, TooLargeError
from protocol.frames import (
    MAX_HEADER_BYTES,
    MAX_JOINED_BYTES,
    MAX_PAYLOAD_BYTES,
    decode_frame,
    decode_frames,
    encode_frame,
)
from protocol.messages import DataMessage, OpenSession, SessionOpened
from tests.protocol.strategies import data_messages

OPENED = SessionOpened(session_id="s")


def prefix(n_header: int, n_payload: int, *, magic: bytes = b"BG", version: int = 1, zero: int = 0) -> bytes:
    return struct.pack(">2sBBIQ", magic, version, zero, n_header, n_payload)


@given(message=data_messages, payload=st.binary(max_size=300))
def test_a_frame_comes_back_as_it_was(message: DataMessage, payload: bytes) -> None:
    frame = decode_frame(encode_frame(message, payload))
    assert (frame.message, bytes(frame.payload)) == (message, payload)


@given(sent=st.lists(st.tuples(data_messages, st.binary(max_size=300)), min_size=1, max_size=5))
def test_several_frames_come_back_in_order(sent: list[tuple[DataMessage, bytes]]) -> None:
    frames = decode_frames(b"".join(encode_frame(message, payload) for message, payload in sent))
    assert [(frame.message, bytes(frame.payload)) for frame in frames] == sent


@pytest.mark.parametrize("behind", [b"x", b"BG", encode_frame(OPENED)[:-1], encode_frame(OPENED) + b"x", bytes(16)])
def test_frames_with_something_else_behind_them_are_refused_whole(behind: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_frames(encode_frame(OPENED, b"payload") + behind)


def test_only_small_frames_come_joined() -> None:
    one = encode_frame(OPENED, bytes(100))
    n_most = MAX_JOINED_BYTES // len(one)
    assert len(decode_frames(n_most * one)) == n_most
    for data in ((n_most + 1) * one, encode_frame(OPENED, bytes(MAX_JOINED_BYTES)) + one):
        with pytest.raises(TooLargeError, match=f"at most {MAX_JOINED_BYTES}"):
            decode_frames(data)
    assert len(decode_frames(encode_frame(OPENED, bytes(MAX_JOINED_BYTES)))) == 1


@given(data=st.binary(max_size=100))
def test_any_bytes_give_a_frame_or_a_typed_error(data: bytes) -> None:
    for decode in (decode_frame, decode_frames):
        with suppress(ProtocolError, TooLargeError):
            decode(data)


@given(message=data_messages, payload=st.binary(max_size=50), at=st.integers(0), bits=st.integers(1, 255))
def test_a_frame_with_an_altered_byte_is_a_frame_or_a_typed_error(
    message: DataMessage, payload: bytes, at: int, bits: int
) -> None:
    data = bytearray(encode_frame(message, payload))
    data[at % len(data)] ^= bits
    try:
        decode_frame(data)
    except (ProtocolError, TooLargeError):
        return


@given(message=data_messages, payload=st.binary(max_size=50), n_more=st.integers(-300, 5).filter(bool))
def test_a_frame_cut_anywhere_or_with_trailing_bytes_is_refused(
    message: DataMessage, payload: bytes, n_more: int
) -> None:
    one = encode_frame(message, payload)
    with pytest.raises(ProtocolError):
        decode_frame(one[:n_more] if n_more < 0 else one + bytes(n_more))


@pytest.mark.parametrize(
    "head",
    [prefix(MAX_HEADER_BYTES + 1, 0), prefix(10, MAX_PAYLOAD_BYTES + 1), prefix(0xFFFFFFFF, 2**64 - 1)],
)
def test_a_length_over_its_limit_is_refused_before_anything_is_allocated(head: bytes) -> None:
    with pytest.raises(TooLargeError, match="limits"):
        decode_frame(head)


@pytest.mark.parametrize(
    "head", [prefix(0, 0, magic=b"HT"), prefix(0, 0, zero=1), prefix(0, 0, version=9), prefix(0, 0)]
)
def test_another_format_or_an_empty_header_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_frame(head)


def test_what_is_too_large_is_not_sent() -> None:
    with pytest.raises(TooLargeError):
        encode_frame(OpenSession(session_id="s", tickets=("x" * MAX_HEADER_BYTES,), deadline_s=1))
    with pytest.raises(TooLargeError):
        encode_frame(OPENED, memoryview(bytearray(MAX_PAYLOAD_BYTES + 1)))
