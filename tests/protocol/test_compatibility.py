"""What programs of older protocols say is understood, and what is said to them they understand."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import msgspec
import pytest

from protocol import cluster_rest, control_messages, key_rest, messages, plan_rest, rest, tickets, worker_rest
from protocol.codec import decode_json, decode_message
from protocol.compatibility import (
    ADDED,
    ADDED_ERRORS,
    answer_understood_by,
    error_understood_by,
    spoken_version,
    understood_by,
)
from protocol.control_messages import CoordinatorToWorker, WorkerToCoordinator
from protocol.error_forms import all_errors
from protocol.errors import (
    ErrorBody,
    ModelLoadingError,
    ModelUnavailableError,
    OverloadedError,
)
from protocol.frames import decode_frame, encode_frame
from protocol.ids import SessionId, WorkerId
from protocol.messages import PROTOCOL_VERSION, AttachTail, DataMessage, SamplingParams, SessionEnded
from protocol.rest import HopFailure, RouteRequest
from protocol.tickets import Ticket, sign_claims, verified_claims
from tests.protocol import samples, samples_1_1
from tests.protocol.recorded import bodies_1_0, bodies_1_1, sockets_1_0, sockets_1_1
from tests.protocol.recording import KEY, Samples

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
ERRORS_OF_1_1 = frozenset(["lease", "model_loading"])
"""The codes that 1.1 knows beside them."""


def structs(*modules: ModuleType) -> dict[str, Any]:
    """By name, what these modules can read."""
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct)
    }


@dataclass(frozen=True, kw_only=True)
class Older:
    """What a version before ours said, and what it can read."""

    version: str
    samples: Samples
    sockets: Any
    structs: dict[str, Any]
    errors: frozenset[str]

    def recorded(self, name: str) -> bytes:
        return (RECORDED / self.version / name).read_bytes()

    def means(self, old: Any, new: Any) -> bool:
        """Whether a peer of that version read what was meant, apart from what it can't know."""
        meant = msgspec.convert(answer_understood_by(new, self.version), type(old))
        return bool(old == meant)


RECORDED = Path(__file__).parent / "recorded"
V1_0 = Older(
    version="1.0",
    samples=samples.SAMPLES,
    sockets=sockets_1_0,
    structs=structs(sockets_1_0, bodies_1_0),
    errors=ERRORS_1_0,
)
V1_1 = Older(
    version="1.1",
    samples=samples_1_1.SAMPLES,
    sockets=sockets_1_1,
    structs=structs(sockets_1_1, bodies_1_1),
    errors=ERRORS_1_0 | ERRORS_OF_1_1,
)
OLDER = (V1_0, V1_1)
NEW = structs(messages, control_messages, tickets, rest, cluster_rest, key_rest, plan_rest, worker_rest)
SOCKET_MESSAGES = (*get_args(DataMessage), *get_args(CoordinatorToWorker))
"""Said in the version of the worker that gets them; what coordinators are told is passed over where it is new."""


def of_every_version(*kinds: str) -> Any:
    """The test, once for each sample of these kinds in each version."""
    return pytest.mark.parametrize(
        ("older", "name"),
        [
            pytest.param(older, name, id=f"{older.version}-{name}")
            for older in OLDER
            for kind in kinds
            for name in getattr(older.samples, kind)
        ],
    )


each_version = pytest.mark.parametrize("older", OLDER, ids=lambda older: older.version)


# ------------------------------------------------------------------ what older programs say


@each_version
def test_every_sample_is_recorded_and_nothing_else(older: Older) -> None:
    assert {path.name for path in (RECORDED / older.version).iterdir()} == set(older.samples.encoded())


@of_every_version("frames")
def test_frames_of_older_programs_are_understood(older: Older, name: str) -> None:
    frame = decode_frame(older.recorded(f"frame-{name}.bin"))
    assert (frame.message, bytes(frame.payload)) == older.samples.frames[name]


@of_every_version("to_coordinator")
def test_what_older_workers_say_is_understood(older: Older, name: str) -> None:
    data = older.recorded(f"control-{name}.bin")
    assert decode_message(data, WorkerToCoordinator) == older.samples.to_coordinator[name]


@of_every_version("to_worker")
def test_what_older_coordinators_say_is_understood(older: Older, name: str) -> None:
    data = older.recorded(f"control-{name}.bin")
    assert decode_message(data, CoordinatorToWorker) == older.samples.to_worker[name]


@of_every_version("claims")
def test_tokens_of_older_programs_verify(older: Older, name: str) -> None:
    claims = older.samples.claims[name]
    text = older.recorded(f"token-{name}.bin").decode()
    assert verified_claims(text, type(claims), [KEY], NOW_S) == claims


@of_every_version("bodies")
def test_bodies_of_older_programs_are_understood(older: Older, name: str) -> None:
    body = older.samples.bodies[name]
    assert decode_json(older.recorded(f"body-{name}.json"), type(body)) == body


# ------------------------------------------------------------------ what is said to older programs


@of_every_version("frames")
def test_an_older_peer_understands_our_frames(older: Older, name: str) -> None:
    message, payload = older.samples.frames[name]
    data = encode_frame(understood_by(message, older.version), payload)
    magic, n_header, n_payload = struct.unpack(">4sIQ", data[:16])
    assert (magic, n_payload, data[16 + n_header :]) == (b"BG\x01\x00", len(payload), payload)
    header = data[16 : 16 + n_header]
    assert older.means(msgspec.msgpack.decode(header, type=older.sockets.DataMessage), message)


@each_version
def test_what_is_newer_is_left_out_of_what_is_in_a_message_too(older: Older) -> None:
    # a neutral value that was computed is another 0.0 than the default, which msgspec sends
    neutral = SamplingParams(max_tokens=1, presence_penalty=float("0"), frequency_penalty=float("0"))
    message = AttachTail(session_id=SessionId("s"), ticket="a.b", sampling=neutral)
    data = msgspec.msgpack.encode(understood_by(message, older.version))
    assert older.means(msgspec.msgpack.decode(data, type=older.sockets.DataMessage), message)
    assert understood_by(message, PROTOCOL_VERSION) is message
    assert b"presence_penalty" in msgspec.msgpack.encode(message)
    assert b"presence_penalty" not in data


@of_every_version("to_worker")
def test_an_older_worker_understands_our_control_messages(older: Older, name: str) -> None:
    message = older.samples.to_worker[name]
    data = msgspec.msgpack.encode(understood_by(message, older.version))
    assert older.means(msgspec.msgpack.decode(data, type=older.sockets.CoordinatorToWorker), message)


@pytest.mark.parametrize("name", V1_1.samples.to_coordinator)
def test_an_older_coordinator_understands_our_control_messages(name: str) -> None:
    message = V1_1.samples.to_coordinator[name]  # 1.0 is two minors back and refuses fields that are new to it
    data = msgspec.msgpack.encode(message)
    assert V1_1.means(msgspec.msgpack.decode(data, type=V1_1.sockets.WorkerToCoordinator), message)


@of_every_version("claims")
def test_an_older_worker_understands_our_tokens(older: Older, name: str) -> None:
    claims = older.samples.claims[name]
    kind = older.structs[type(claims).__name__]
    data = msgspec.msgpack.encode(understood_by(claims, older.version))
    assert older.means(msgspec.msgpack.decode(data, type=kind), claims)


@of_every_version("bodies")
def test_an_older_peer_understands_our_bodies(older: Older, name: str) -> None:
    body = older.samples.bodies[name]
    adapted = understood_by if isinstance(body, rest.RequestBody) else answer_understood_by
    data = msgspec.json.encode(adapted(body, older.version))
    assert older.means(msgspec.json.decode(data, type=older.structs[type(body).__name__]), body)


# ------------------------------------------------------------------ the rule of minors


@each_version
def test_every_field_that_was_added_is_listed_and_may_be_left_out(older: Older) -> None:
    minor = int(older.version.split(".")[1])
    listed = {
        (kind.__name__, name)
        for added_in, kinds in ADDED.items()
        for kind, names in kinds.items()
        for name in names
        if added_in > minor and kind.__name__ in older.structs
    }
    added = set()
    for name, old in older.structs.items():
        if name not in NEW:
            continue
        fields = {field.name: field for field in msgspec.structs.fields(NEW[name])}
        old_fields = {field.name: field for field in msgspec.structs.fields(old)}
        assert set(old_fields) <= set(fields), f"{name} lost a field that {older.version} sends"
        for field_name in set(fields) - set(old_fields):
            assert not fields[field_name].required, f"{name}.{field_name} is new: it needs a default"
            is_adapted = NEW[name] in SOCKET_MESSAGES or issubclass(NEW[name], (tickets.Claims, rest.RequestBody))
            assert NEW[name].__struct_config__.omit_defaults or not is_adapted, f"{name}: omit_defaults=True"
            added.add((name, field_name))
        for field_name, field in old_fields.items():
            assert fields[field_name].required <= field.required, f"{name}.{field_name} could be left out before"
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


def test_a_failure_of_another_session_than_the_continued_is_none_to_who_cannot_tell_them_apart() -> None:
    failure = HopFailure(code="hop_lost", worker_id=WorkerId("w"), session_id=SessionId("t"))
    wanted = RouteRequest(model="m", n_prompt_tokens=3, max_tokens=4, continues=SessionId("s"), failure=failure)
    assert understood_by(wanted, "1.1") == msgspec.structs.replace(wanted, failure=None)


@each_version
def test_every_error_that_was_added_is_listed_and_is_a_kind_of_an_older_one(older: Older) -> None:
    minor = int(older.version.split(".")[1])
    added = [kind for added_in, kinds in ADDED_ERRORS.items() for kind in kinds if added_in > minor]
    assert {kind.code for kind in all_errors()} - {kind.code for kind in added} == older.errors
    for kind in added:
        assert error_understood_by(kind("why"), older.version).code in older.errors


def test_an_error_that_is_newer_than_the_peer_is_said_as_the_older_one() -> None:
    loading = ModelLoadingError("on its way", retry_after_s=2.0)
    assert error_understood_by(loading, PROTOCOL_VERSION) is loading
    older = error_understood_by(loading, "1.0")
    assert type(older) is ModelUnavailableError
    assert (older.message, older.retry_after_s) == ("on its way", 2.0)
    full = OverloadedError("full")
    assert error_understood_by(full, "1.0") is full


def test_an_error_in_a_message_is_said_as_the_older_one_too() -> None:
    """To a client of 1.1 an unknown code is an internal error of the worker, and costs the worker its trust."""
    body = ErrorBody(code="model_fault", message="the weights are damaged", retry_after_s=2.0)
    ended = SessionEnded(session_id=SessionId("s"), worker_id=WorkerId("w"), error=body)
    for older in OLDER:
        said = understood_by(ended, older.version)
        assert said.error == ErrorBody(code="model_unavailable", message=body.message, retry_after_s=2.0)
    assert understood_by(ended, PROTOCOL_VERSION).error is body
    for code in ("hop_lost", "a code of 1.9"):
        other = msgspec.structs.replace(ended, error=ErrorBody(code=code, message="m"))
        assert understood_by(other, "1.1").error.code == code


def test_a_worker_of_1_0_gets_tickets_that_it_can_read() -> None:
    ticket = msgspec.structs.replace(samples.SAMPLES.claims["route-ticket"], continues=SessionId("s"))
    text = sign_claims(understood_by(ticket, "1.0"), [KEY])
    assert verified_claims(text, Ticket, [KEY], NOW_S) == samples.SAMPLES.claims["route-ticket"]
    signed = base64.urlsafe_b64decode(text.rpartition(".")[0])
    assert V1_0.means(
        msgspec.msgpack.decode(signed, type=bodies_1_0.Ticket), samples.SAMPLES.claims["route-ticket"]
    )


def test_a_peer_that_does_not_say_speaks_1_0() -> None:
    assert spoken_version({}) == "1.0"
    assert spoken_version({"Brigade-Protocol": "1.1"}) == "1.1"
