"""What programs of protocol 1.0 say is understood, and what is said to them they understand."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol import messages, rest, tickets, worker_rest
from protocol.codec import decode_json, decode_message
from protocol.compatibility import (
    ADDED,
    ADDED_ERRORS,
    answer_understood_by,
    error_understood_by,
    spoken_version,
    understood_by,
)
from protocol.errors import (
    BrigadeError,
    ModelLoadingError,
    ModelUnavailableError,
    OverloadedError,
    _leaf_classes,
)
from protocol.frames import decode_frame, encode_frame
from protocol.ids import SessionId
from protocol.messages import PROTOCOL_VERSION, CoordinatorToWorker, WorkerToCoordinator
from protocol.rest import HopFailure, RouteRequest
from protocol.tickets import Ticket, sign_claims, verified_claims
from tests.protocol import samples
from tests.protocol.recorded import bodies_1_0, sockets_1_0

RECORDED = Path(__file__).parent / "recorded" / "1.0"
NOW_S = 1.8e9
ERRORS_1_0 = frozenset(
    [
        "bad_file",
        "bad_request",
        "cancelled",
        "clock_skew",
        "config",
        "conflict",
        "context_exceeded",
        "database_version",
        "deadline_exceeded",
        "draining",
        "forbidden",
        "hop_lost",
        "internal",
        "invalid_request",
        "model_unavailable",
        "not_found",
        "overloaded",
        "port_in_use",
        "protocol_error",
        "protocol_version",
        "stale_epoch",
        "storage",
        "too_large",
        "unauthenticated",
        "unreachable",
        "wrong_secret",
    ]
)
"""The codes that 1.0 knows."""
OLD: dict[str, Any] = {
    name: value
    for module in (sockets_1_0, bodies_1_0)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
}
NEW: dict[str, Any] = {
    name: value
    for module in (messages, tickets, rest, worker_rest)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
}


def recorded(name: str) -> bytes:
    return (RECORDED / name).read_bytes()


def same(old: Any, new: Any) -> bool:
    """Whether a strict peer of 1.0 read what was meant, apart from what it can't know."""
    meant = msgspec.convert(answer_understood_by(new, "1.0"), type(old))
    return bool(msgspec.to_builtins(old) == msgspec.to_builtins(meant))


# ------------------------------------------------------------------ what 1.0 says


def test_every_sample_is_recorded_and_nothing_else() -> None:
    assert {path.name for path in RECORDED.iterdir()} == set(samples.encoded())


@pytest.mark.parametrize("name", samples.FRAMES)
def test_frames_of_1_0_are_understood(name: str) -> None:
    frame = decode_frame(recorded(f"frame-{name}.bin"))
    assert (frame.message, bytes(frame.payload)) == samples.FRAMES[name]


@pytest.mark.parametrize("name", samples.TO_COORDINATOR)
def test_what_workers_of_1_0_say_is_understood(name: str) -> None:
    assert decode_message(recorded(f"control-{name}.bin"), WorkerToCoordinator) == samples.TO_COORDINATOR[name]


@pytest.mark.parametrize("name", samples.TO_WORKER)
def test_what_coordinators_of_1_0_say_is_understood(name: str) -> None:
    assert decode_message(recorded(f"control-{name}.bin"), CoordinatorToWorker) == samples.TO_WORKER[name]


@pytest.mark.parametrize("name", samples.CLAIMS)
def test_tokens_of_1_0_verify(name: str) -> None:
    claims = samples.CLAIMS[name]
    text = recorded(f"token-{name}.bin").decode()
    assert verified_claims(text, type(claims), [samples.KEY], NOW_S) == claims


@pytest.mark.parametrize("name", samples.BODIES)
def test_bodies_of_1_0_are_understood(name: str) -> None:
    body = samples.BODIES[name]
    assert decode_json(recorded(f"body-{name}.json"), type(body)) == body


# ------------------------------------------------------------------ what is said to 1.0


@pytest.mark.parametrize("name", samples.FRAMES)
def test_a_peer_of_1_0_understands_our_frames(name: str) -> None:
    message, payload = samples.FRAMES[name]
    data = encode_frame(understood_by(message, "1.0"), payload)
    magic, n_header, n_payload = struct.unpack(">4sIQ", data[:16])
    assert (magic, n_payload, data[16 + n_header :]) == (b"BG\x01\x00", len(payload), payload)
    header = data[16 : 16 + n_header]
    assert same(msgspec.msgpack.decode(header, type=sockets_1_0.DataMessage), message)


@pytest.mark.parametrize("name", samples.TO_COORDINATOR | samples.TO_WORKER)
def test_a_peer_of_1_0_understands_our_control_messages(name: str) -> None:
    message = (samples.TO_COORDINATOR | samples.TO_WORKER)[name]
    kind = sockets_1_0.WorkerToCoordinator | sockets_1_0.CoordinatorToWorker
    data = msgspec.msgpack.encode(understood_by(message, "1.0"))
    assert same(msgspec.msgpack.decode(data, type=kind), message)


@pytest.mark.parametrize("name", samples.CLAIMS)
def test_a_worker_of_1_0_understands_our_tokens(name: str) -> None:
    claims = samples.CLAIMS[name]
    kind = OLD[type(claims).__name__]
    data = msgspec.msgpack.encode(understood_by(claims, "1.0"))
    assert same(msgspec.msgpack.decode(data, type=kind), claims)


@pytest.mark.parametrize("name", samples.BODIES)
def test_a_peer_of_1_0_understands_our_bodies(name: str) -> None:
    body = samples.BODIES[name]
    adapted = understood_by if isinstance(body, rest._Request) else answer_understood_by
    data = msgspec.json.encode(adapted(body, "1.0"))
    assert same(msgspec.json.decode(data, type=OLD[type(body).__name__]), body)


# ------------------------------------------------------------------ the rule of minors


def test_every_field_that_was_added_is_listed_and_may_be_left_out() -> None:
    listed = {(kind.__name__, name) for kinds in ADDED.values() for kind, names in kinds.items() for name in names}
    added = set()
    for name, old in OLD.items():
        if name not in NEW:
            continue
        fields = {field.name: field for field in msgspec.structs.fields(NEW[name])}
        old_fields = {field.name: field for field in msgspec.structs.fields(old)}
        assert set(old_fields) <= set(fields), f"{name} lost a field that 1.0 sends"
        for field_name in set(fields) - set(old_fields):
            assert not fields[field_name].required, f"{name}.{field_name} is new: it needs a default"
            is_answer = issubclass(NEW[name], rest.Body) and not issubclass(NEW[name], rest._Request)
            assert is_answer or NEW[name].__struct_config__.omit_defaults, f"{name}: omit_defaults=True"
            added.add((name, field_name))
        for field_name, field in old_fields.items():
            assert fields[field_name].required <= field.required, f"{name}.{field_name} could be left out in 1.0"
    assert added == listed


def test_what_is_newer_than_the_peer_is_left_out() -> None:
    wanted = RouteRequest(
        model="m",
        n_prompt_tokens=3,
        max_tokens=4,
        continues=SessionId("s"),
        failure=HopFailure(code="hop_lost"),
        wait_s=5.0,
    )
    assert understood_by(wanted, PROTOCOL_VERSION) is wanted
    assert understood_by(wanted, "1.0") == RouteRequest(model="m", n_prompt_tokens=3, max_tokens=4)
    msgspec.json.decode(msgspec.json.encode(understood_by(wanted, "1.0")), type=bodies_1_0.RouteRequest)


def test_every_error_that_was_added_is_listed_and_is_a_kind_of_an_older_one() -> None:
    added = {kind.code for kinds in ADDED_ERRORS.values() for kind in kinds}
    known = set(_leaf_classes(BrigadeError))
    assert known - added == ERRORS_1_0
    for kinds in ADDED_ERRORS.values():
        for kind in kinds:
            assert error_understood_by(kind("why"), "1.0").code in ERRORS_1_0


def test_an_error_that_is_newer_than_the_peer_is_said_as_the_older_one() -> None:
    loading = ModelLoadingError("on its way", retry_after_s=2.0)
    assert error_understood_by(loading, PROTOCOL_VERSION) is loading
    older = error_understood_by(loading, "1.0")
    assert type(older) is ModelUnavailableError
    assert (older.message, older.retry_after_s) == ("on its way", 2.0)
    full = OverloadedError("full")
    assert error_understood_by(full, "1.0") is full


def test_a_worker_of_1_0_gets_tickets_that_it_can_read() -> None:
    ticket = msgspec.structs.replace(samples.CLAIMS["route-ticket"], continues=SessionId("s"))
    text = sign_claims(understood_by(ticket, "1.0"), [samples.KEY])
    assert verified_claims(text, Ticket, [samples.KEY], NOW_S) == samples.CLAIMS["route-ticket"]
    signed = base64.urlsafe_b64decode(text.rpartition(".")[0])
    assert same(msgspec.msgpack.decode(signed, type=bodies_1_0.Ticket), samples.CLAIMS["route-ticket"])


def test_a_peer_that_does_not_say_speaks_1_0() -> None:
    assert spoken_version({}) == "1.0"
    assert spoken_version({"Brigade-Protocol": "1.1"}) == "1.1"
