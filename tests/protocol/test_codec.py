"""Messages survive the wire; anything else is refused with one kind of error."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.cluster_rest import AddModelRequest
from protocol.codec import check_version, decode_json, decode_message, encode_json, encode_message
from protocol.control_messages import WorkerToCoordinator
from protocol.errors import InvalidRequestError, ProtocolError, ProtocolVersionError, TooLargeError
from protocol.key_limits import LimitsChange
from protocol.key_rest import CreateKeyRequest
from protocol.messages import MAX_DRAFTS, PROTOCOL_VERSION, DataMessage, SamplingParams, SessionOpened
from protocol.rest import Hello, RouteRequest
from tests.protocol.strategies import data_messages


@given(message=data_messages)
def test_a_message_comes_back_as_it_was(message: DataMessage) -> None:
    assert decode_message(encode_message(message), DataMessage) == message


@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        decode_message(data, DataMessage)
    except ProtocolError:
        return


@given(message=data_messages, cut=st.integers(0, 100), flip=st.integers(0, 255))
def test_altered_bytes_give_a_message_or_a_protocol_error(message: DataMessage, cut: int, flip: int) -> None:
    data = bytearray(encode_message(message))
    data[cut % len(data)] ^= flip
    try:
        decode_message(bytes(data[: len(data) - cut % 3]), DataMessage)
    except ProtocolError:
        return


def test_a_message_over_the_limit_is_not_read() -> None:
    with pytest.raises(TooLargeError, match=r"11.*10"):
        decode_message(b"x" * 11, DataMessage, max_bytes=10)
    with pytest.raises(TooLargeError, match=r"11.*10"):
        decode_json(b"x" * 11, RouteRequest, max_bytes=10)


def test_a_message_of_the_other_plane_is_refused() -> None:
    leaving = msgspec.msgpack.encode({"type": "leaving", "reason": "x"})
    assert decode_message(leaving, WorkerToCoordinator).reason == "x"
    with pytest.raises(ProtocolError):
        decode_message(leaving, DataMessage)


def test_a_field_of_a_newer_minor_is_passed_over() -> None:
    data = msgspec.msgpack.encode({"type": "opened", "session_id": "s", "newer": True})
    assert decode_message(data, DataMessage) == SessionOpened(session_id="s")
    hello = b'{"protocol_version": "1.9", "coordinator_id": "c", "time_s": 1.0, "newer": {}}'
    assert decode_json(hello, Hello) == Hello(protocol_version="1.9", coordinator_id="c", time_s=1.0)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (RouteRequest, b'{"model": "m", "n_prompt_tokens": 1, "max_tokens": 3, "max_token": 4}'),
        (AddModelRequest, b'{"name": "m", "revision": "r", "replica": 2}'),
        (CreateKeyRequest, b'{"name": "ci", "knd": "admin"}'),
    ],
)
def test_a_slip_in_what_people_write_is_found(kind: type, body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=r"max_token|replica|knd"):
        decode_json(body, kind)


def test_a_body_names_the_field_that_is_wrong() -> None:
    with pytest.raises(InvalidRequestError, match="n_prompt_tokens"):
        decode_json(b'{"model": "m", "n_prompt_tokens": "many", "max_tokens": 3}', RouteRequest)
    with pytest.raises(InvalidRequestError, match="0 tokens"):
        decode_json(b'{"model": "m", "n_prompt_tokens": 0, "max_tokens": 3}', RouteRequest)
    with pytest.raises(InvalidRequestError):
        decode_json(b"[" * 100_000, RouteRequest)


def test_a_number_of_thousands_of_digits_is_refused_and_not_repeated() -> None:
    for kind, body in (
        (LimitsChange, '{"tokens_per_min": %s}'),
        (RouteRequest, '{"model": "m", "n_prompt_tokens": 1, "max_tokens": %s}'),
        (RouteRequest, '{"model": "m", "n_prompt_tokens": 1, "max_tokens": 1, "private_blocks": %s}'),
        (RouteRequest, '{"model": "m", "n_prompt_tokens": 1, "max_tokens": 0, "states_after": %s}'),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            decode_json((body % ("9" * 4000)).encode(), kind)
        assert len(refused.value.message) < 250
    with pytest.raises(InvalidRequestError, match=r"max_tokens is 2147483648; it can be 1 to 2,147,483,647"):
        decode_json(b'{"model": "m", "n_prompt_tokens": 1, "max_tokens": 2147483648}', RouteRequest)


def test_a_body_comes_back_as_it_was() -> None:
    body = RouteRequest(model="m", n_prompt_tokens=2, max_tokens=3, exclude=("w",))
    assert decode_json(encode_json(body), RouteRequest) == body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e-38),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -1),
        ("repetition_penalty", 0.0),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("max_tokens", 0),
        ("stop_token_ids", tuple(range(65))),
    ],
)
def test_sampling_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field.replace("stop_token_ids", "stop tokens")):
        SamplingParams(**{"max_tokens": 1, field: value})  # type: ignore[arg-type]


def test_what_a_message_says_is_not_repeated_by_what_is_wrong_with_it() -> None:
    """Reasons are logged, and what came in the wrong place may be a prompt."""
    step = {"type": "step", "session_id": "s", "position": 4, "n_tokens": 3, "dtype": "float32"}
    for name, value in (("type", "my words"), ("dtype", "my 'words' - at `$.home`"), ("dtype", "words")):
        with pytest.raises(ProtocolError) as caught:
            decode_message(msgspec.msgpack.encode(step | {name: value}), DataMessage)
        assert caught.value.message.endswith(f"value - at `$.{name}`")
    with pytest.raises(InvalidRequestError, match=r"Invalid enum value - at `\$\.kind`: admin or client$"):
        decode_json(b'{"name": "x", "kind": "my words"}', CreateKeyRequest)


class _Inner(msgspec.Struct):
    pace: Literal["slow", "fast"] | msgspec.UnsetType | None = msgspec.UNSET


class _Outer(msgspec.Struct, rename="camel"):
    in_list: list[_Inner] = []
    by_name: dict[str, _Inner] = {}
    pairs: tuple[tuple[int, Literal["left", "right", "both"]], ...] = ()
    either: _Inner | None = None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"inList": [{}, {"pace": "words"}]}', "`$.inList[1].pace`: fast or slow"),
        (b'{"byName": {"a": {"pace": "words"}}}', "`$.byName[...].pace`: fast or slow"),
        (b'{"pairs": [[1, "words"]]}', "`$.pairs[0][1]`: both, left or right"),
        (b'{"either": {"pace": "words"}}', "`$.either.pace`: fast or slow"),
    ],
)
def test_what_a_field_may_be_is_said_wherever_it_is(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_json(body, _Outer)
    assert caught.value.message.endswith(f"Invalid enum value - at {says}")


@pytest.mark.parametrize(
    ("n_tokens", "n_drafts", "is_last"), [(3, 3, True), (3, 2, False), (100, MAX_DRAFTS + 1, True)]
)
def test_steps_of_more_guesses_than_make_sense_are_refused(n_tokens: int, n_drafts: int, is_last: bool) -> None:
    step = {"type": "step", "session_id": "s", "position": 4, "n_tokens": n_tokens, "dtype": "float32"}
    said = {**step, "is_last": is_last, "drafts": [7] * n_drafts}
    with pytest.raises(ProtocolError, match=f"{n_drafts} drafts in a step of {n_tokens}"):
        decode_message(msgspec.msgpack.encode(said), DataMessage)
    assert decode_message(msgspec.msgpack.encode({**said, "is_last": True, "drafts": [7, 7]}), DataMessage)


def test_another_major_version_is_refused_and_both_are_named() -> None:
    check_version(PROTOCOL_VERSION)
    check_version(PROTOCOL_VERSION.split(".")[0] + ".99")
    for theirs in ("2.0", "0.9", "", "1", "1.", "1.0.0", "1.x", "-1.0", "11.0", "1.\u0663", "1.0\n", "x" * 1000):
        with pytest.raises(ProtocolVersionError, match=PROTOCOL_VERSION):
            check_version(theirs)
