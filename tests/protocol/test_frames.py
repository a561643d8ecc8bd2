"""Frames: whole, byte by byte, with trailing bytes, cut, over the limits."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError, TooLargeError
from protocol.frames import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PREFIX_BYTES,
    Frame,
    FrameDecoder,
    decode_frame,
    encode_frame,
)
from protocol.messages import DataMessage, OpenSession, SessionOpened
from tests.protocol.strategies import data_messages

OPENED = SessionOpened(session_id="s")


def prefix(n_header: int, n_payload: int, *, magic: bytes = b"BG", version: int = 1, zero: int = 0) -> bytes:
    return struct.pack(">2sBBIQ", magic, version, zero, n_header, n_payload)


def contents(frames: list[Frame]) -> list[tuple[DataMessage, bytes]]:
    return [(frame.message, bytes(frame.payload)) for frame in frames]


@given(message=data_messages, payload=st.binary(max_size=300))
def test_a_frame_comes_back_as_it_was(message: DataMessage, payload: bytes) -> None:
    frame = decode_frame(encode_frame(message, payload))
    assert (frame.message, bytes(frame.payload)) == (message, payload)


@given(
    frames=st.lists(st.tuples(data_messages, st.binary(max_size=50)), max_size=4),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=30),
)
def test_a_stream_cut_anywhere_gives_the_same_frames(
    frames: list[tuple[DataMessage, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(encode_frame(message, payload) for message, payload in frames)
    decoder, got, at = FrameDecoder(), [], 0
    for turn in range(len(stream)):
        if at >= len(stream):
            break
        n = cuts[turn % len(cuts)]
        got.extend(decoder.feed(stream[at : at + n]))
        at += n
    decoder.close()
    assert contents(got) == frames


def test_byte_by_byte_and_with_trailing_bytes() -> None:
    decoder, one = FrameDecoder(), encode_frame(OPENED, b"abc")
    got = [frame for byte in one for frame in decoder.feed(bytes([byte]))]
    assert contents(got) == [(OPENED, b"abc")]
    assert contents(list(decoder.feed(one + one[:5]))) == [(OPENED, b"abc")]
    with pytest.raises(ProtocolError, match="5 bytes into a frame"):
        decoder.close()


@given(data=st.binary(max_size=100))
def test_any_bytes_give_a_frame_or_a_typed_error(data: bytes) -> None:
    try:
        decode_frame(data)
        list(FrameDecoder().feed(data))
    except (ProtocolError, TooLargeError):
        return


@pytest.mark.parametrize(
    "head",
    [prefix(MAX_HEADER_BYTES + 1, 0), prefix(10, MAX_PAYLOAD_BYTES + 1), prefix(0xFFFFFFFF, 2**64 - 1)],
)
def test_a_length_over_its_limit_is_refused_before_anything_is_allocated(head: bytes) -> None:
    decoder = FrameDecoder()
    with pytest.raises(TooLargeError, match="limits"):
        list(decoder.feed(head))
    assert len(decoder._buffer) == PREFIX_BYTES


@pytest.mark.parametrize(
    "head", [prefix(0, 0, magic=b"HT"), prefix(0, 0, zero=1), prefix(0, 0, version=9), prefix(0, 0)]
)
def test_another_format_or_an_empty_header_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameDecoder().feed(head))


def test_a_whole_frame_must_be_exactly_one() -> None:
    one = encode_frame(OPENED, b"abc")
    for bad in (one[:-1], one + b"x", one[: PREFIX_BYTES - 1], b""):
        with pytest.raises(ProtocolError):
            decode_frame(bad)


def test_what_is_too_large_is_not_sent() -> None:
    with pytest.raises(TooLargeError):
        encode_frame(OpenSession(session_id="s", tickets=("x" * MAX_HEADER_BYTES,), deadline_s=1))
    with pytest.raises(TooLargeError):
        encode_frame(OPENED, memoryview(bytearray(MAX_PAYLOAD_BYTES + 1)))
