"""Speaking with an older peer: which fields a minor version added, and leaving them out for who can't know them.

A minor adds fields that may be left out, kinds of an older error, messages of the control socket that only who
knows them is sent, and 1.2 several frames in one message, likewise; nothing else: no meaning, no other value of an
old field. Every side passes over fields that it doesn't know, since 1.1; 1.0 refuses them. So whoever has something
newer to say to a peer says it in that peer's version, which is known from its handshake, and goes without where it
must.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from protocol.cluster_rest import AddModelRequest, ChangeModelRequest, ClusterStatus, WorkerInfo
from protocol.control_messages import (
    Announce,
    DeviceReport,
    EndSessions,
    GenerationReport,
    Heartbeat,
    Leaving,
    SessionsBegun,
    SpanAssignment,
    SpanStatus,
)
from protocol.coordinator_errors import DatabaseAwayError, LeaseError
from protocol.errors import (
    BrigadeError,
    CancelledByOperatorError,
    ErrorBody,
    InProgressError,
    KeyReusedError,
    KeyRevokedError,
    ModelFaultError,
    ModelLoadingError,
    OverLimitError,
    PreconditionFailedError,
    QuotaExceededError,
)
from protocol.key_rest import CreateKeyRequest, KeyInfo, KeyList
from protocol.messages import CloseSession, OpenSession, SamplingParams, SessionEnded, SessionOpened, Step, Token
from protocol.rest import ErrorAnswer, HopFailure, ModelInfo, ModelList, RouteGrant, RouteHop, RouteRequest
from protocol.tickets import AttachTicket, Ticket
from protocol.worker_rest import JoinRequest

VERSION_HEADER = "Brigade-Protocol"
"""Header of the data plane and the control socket: the version of who asks; a worker's answer has it too."""
UNSAID_VERSION = "1.0"
"""What a peer speaks that doesn't say: the first version had the header on the data plane alone."""

ADDED: dict[int, dict[type[msgspec.Struct], tuple[str, ...]]] = {
    1: {
        CloseSession: ("worker_id",),
        AddModelRequest: ("n_replicas",),
        ClusterStatus: ("database_problem",),
        ModelInfo: ("n_replicas",),
        RouteRequest: ("continues", "failure", "wait_s"),
        Ticket: ("continues",),
        WorkerInfo: ("version",),
    },
    2: {
        Leaving: ("serves_on_s",),
        Announce: ("leaving",),
        DeviceReport: ("quantization", "quantizations", "is_precision_open", "kv_precision", "runs_encoders"),
        GenerationReport: ("first_token_s", "s_per_token"),
        Heartbeat: ("ends_per_block", "hop_p50_s", "hop_p99_s", "links", "longest_sessions", "time_s"),
        SpanAssignment: ("quantization",),
        SpanStatus: ("kv_bytes_by_block", "note", "quantization"),
        ClusterStatus: ("audits", "joining", "moving"),
        JoinRequest: ("invite_id",),
        CreateKeyRequest: ("limits", "owner"),
        KeyInfo: ("limits", "old_until", "owner"),
        KeyList: ("next_cursor",),
        ModelList: ("next_cursor",),
        AddModelRequest: ("pinned_ends", "signature"),
        ChangeModelRequest: ("pinned_ends", "signature"),
        ModelInfo: ("kind", "n_missing_files", "pinned_ends", "refused", "signed"),
        RouteRequest: (
            "client_legs",
            "min_trust",
            "newest_sampling",
            "pinned_ends",
            "prefix",
            "private_blocks",
            "speculate",
            "states_after",
        ),
        HopFailure: ("session_id",),
        RouteGrant: ("rates",),
        ErrorAnswer: ("rates",),
        RouteHop: ("kv_precision", "quantization"),
        CloseSession: ("error_code", "finish_reason"),
        SessionEnded: ("noticed_by",),
        SessionOpened: ("n_cached", "prompt_costs"),
        OpenSession: ("n_prompt", "traceparent", "wants_timings"),
        Step: ("drafts", "group", "timings"),
        AttachTicket: ("gives_states",),
        Ticket: ("is_private", "n_hops", "prefix", "priority", "returned", "speculates", "tenant"),
        SamplingParams: (
            "constraint",
            "frequency_penalty",
            "logit_bias",
            "n_answered",
            "n_logprobs",
            "presence_penalty",
        ),
        Token: ("is_outgrown", "logprob", "n_drafted", "n_accepted", "timings", "top_logprobs"),
        WorkerInfo: (
            "clock_offset_s",
            "hop_p50_s",
            "hop_p99_s",
            "kv_precision",
            "links",
            "owner",
            "pinned",
            "round_trips_s",
            "trust",
            "trust_level",
        ),
    },
}
"""By minor version: the fields that it added."""

ADDED_ERRORS: dict[int, tuple[type[BrigadeError], ...]] = {
    1: (LeaseError, ModelLoadingError),
    2: (
        CancelledByOperatorError,
        DatabaseAwayError,
        InProgressError,
        KeyReusedError,
        ModelFaultError,
        PreconditionFailedError,
        KeyRevokedError,
        OverLimitError,
        QuotaExceededError,
    ),
}
"""By minor version: the errors that it added, each a kind of an older one."""

_ADDED_CODES = {kind.code: kind for kinds in ADDED_ERRORS.values() for kind in kinds}

ADDED_MESSAGES: dict[int, tuple[type[msgspec.Struct], ...]] = {2: (EndSessions, SessionsBegun)}
"""By minor version: the messages of the control socket that it added. Who doesn't know one isn't sent it."""

_JOINED_SINCE = 2
"""The minor version that took several frames in one message of a data plane's WebSocket."""

S = TypeVar("S", bound=msgspec.Struct)
_NEWEST = max(ADDED)


def spoken_version(headers: Mapping[str, str]) -> str:
    """The protocol version that a request says it is of; not checked yet."""
    return headers.get(VERSION_HEADER, UNSAID_VERSION)


def understood_by(message: S, version: str) -> S:
    """A message, request or token, and all that is in it, without what is newer than `version`.

    `check_version` has let the version pass.
    """
    return message if _minor(version) >= _NEWEST else _without_newer(message, version)


def _without_newer(message: S, version: str) -> S:
    newer = _newer(type(message), version)
    changed = {}
    for field in msgspec.structs.fields(message):
        said = getattr(message, field.name)
        known = _default(field) if field.name in newer else _known(said, version)
        if known is not said:
            changed[field.name] = known
    # Defaults aren't sent (`omit_defaults`), but msgspec takes only the very default for one: not any 0.0.
    return msgspec.structs.replace(message, **changed) if changed else message


def _known(value: Any, version: str) -> Any:
    match value:
        case ErrorBody():
            return msgspec.structs.replace(value, code=_older_code(value.code, version))
        case HopFailure(session_id=other) if other is not None and not knows(HopFailure, "session_id", version):
            return None  # who can't know whose failure it was would take it for the continued session's
        case msgspec.Struct():
            return _without_newer(value, version)
        case tuple() if value and isinstance(value[0], msgspec.Struct):
            return tuple(_without_newer(item, version) for item in value)
        case _:
            return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    """The field's default; of a mapping it is made anew each time."""
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def answer_understood_by(value: Any, version: str) -> Any:
    """What to encode instead of an answer, and of all that is in it, for who speaks `version`.

    Answers say all their fields, defaults too, since people's programs read them: here fields are left out by name.
    """
    match value:
        case msgspec.Struct():
            names = [name for name in value.__struct_fields__ if name not in _newer(type(value), version)]
            return {name: answer_understood_by(getattr(value, name), version) for name in names}
        case tuple():
            return tuple(answer_understood_by(item, version) for item in value)
        case dict():
            return {key: answer_understood_by(item, version) for key, item in value.items()}
        case _:
            return value


def has_field(version: str, kind: type[msgspec.Struct], name: str) -> bool:
    """Whether who speaks `version` knows this field of `kind`."""
    return name not in _newer(kind, version)


def error_understood_by(error: BrigadeError, version: str) -> BrigadeError:
    """The error or, where `version` doesn't have it, the older one that it is a kind of."""
    kind = _older_kind(type(error), version)
    return error if kind is type(error) else kind(error.message, retry_after_s=error.retry_after_s)


def _older_kind(kind: type[BrigadeError], version: str) -> type[BrigadeError]:
    minor = _minor(version)
    while any(kind in kinds for added, kinds in ADDED_ERRORS.items() if added > minor):
        kind = kind.__bases__[0]
    return kind


def _older_code(code: str, version: str) -> str:
    """The same of an error that a message says. Of a code that nobody knows, and of an old one, it is itself."""
    kind = _ADDED_CODES.get(code)
    return code if kind is None else _older_kind(kind, version).code


def knows(kind: type[msgspec.Struct], field: str, version: str) -> bool:
    """Whether who speaks `version` has this field of a message, so that what it says can be relied on."""
    return field not in _newer(kind, version)


def knows_message(kind: type[msgspec.Struct], version: str) -> bool:
    """Whether who speaks `version` can be sent this message."""
    return not any(kind in kinds for added, kinds in ADDED_MESSAGES.items() if added > _minor(version))


def takes_joined_frames(version: str) -> bool:
    """Whether who speaks `version` takes several frames in one message of a WebSocket."""
    return _minor(version) >= _JOINED_SINCE


@lru_cache(maxsize=1024)
def _newer(kind: type[msgspec.Struct], version: str) -> frozenset[str]:
    minor = _minor(version)
    return frozenset(name for added, kinds in ADDED.items() if added > minor for name in kinds.get(kind, ()))


@lru_cache(maxsize=64)
def _minor(version: str) -> int:
    return int(version.split(".")[1])
