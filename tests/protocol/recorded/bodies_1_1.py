"""Tickets and HTTP bodies as protocol 1.1 had them. See README.md; not to be edited."""

from __future__ import annotations

from typing import Literal

import msgspec

from tests.protocol.recorded.sockets_1_1 import (
    BlockRange,
    CoordinatorId,
    ErrorBody,
    FileHash,
    KeyId,
    ModelName,
    Precision,
    Revision,
    SessionId,
    SpanStatus,
    WorkerId,
    WorkerState,
)


class Claims(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    expires_at_s: float


class SessionToken(Claims, frozen=True, kw_only=True, tag="worker-session"):
    worker_id: WorkerId


class Ticket(Claims, frozen=True, kw_only=True, tag="route-ticket"):
    worker_id: WorkerId
    session_id: SessionId
    model: ModelName
    revision: Revision
    blocks: BlockRange
    epoch: int
    previous: WorkerId | None
    next: WorkerId | None
    next_url: str | None
    head: WorkerId
    head_url: str
    tail: WorkerId
    max_positions: int
    continues: SessionId | None = None


class AttachTicket(Claims, frozen=True, kw_only=True, tag="attach-ticket"):
    worker_id: WorkerId
    session_id: SessionId
    max_positions: int


KeyKind = Literal["client", "admin"]

ModelState = Literal["ready", "waiting", "incomplete"]


class Body(msgspec.Struct, frozen=True, kw_only=True):
    pass


class _Request(Body, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class ErrorAnswer(Body, frozen=True, kw_only=True):
    error: ErrorBody


class Hello(Body, frozen=True, kw_only=True):
    program: Literal["brigade-coordinator"] = "brigade-coordinator"
    protocol_version: str
    coordinator_id: CoordinatorId
    time_s: float


class BlockCoverage(Body, frozen=True, kw_only=True):
    blocks: BlockRange
    n_workers: int


class ModelInfo(Body, frozen=True, kw_only=True):
    name: ModelName
    revision: Revision
    state: ModelState
    reason: str
    architecture: str
    n_blocks: int
    context_length: int
    size_bytes: int
    is_chat: bool
    coverage: tuple[BlockCoverage, ...]
    n_replicas: int = 1


class ModelList(Body, frozen=True, kw_only=True):
    models: tuple[ModelInfo, ...]


class HopFailure(_Request, frozen=True, kw_only=True):
    worker_id: WorkerId | None = None
    noticed_by: WorkerId | None = None
    code: str


class RouteRequest(_Request, frozen=True, kw_only=True):
    model: ModelName
    n_prompt_tokens: int
    max_tokens: int
    exclude: tuple[WorkerId, ...] = ()
    continues: SessionId | None = None
    failure: HopFailure | None = None
    wait_s: float = 0.0


class RouteHop(Body, frozen=True, kw_only=True):
    worker_id: WorkerId
    url: str
    blocks: BlockRange
    precision: Precision
    ticket: str


class RouteGrant(Body, frozen=True, kw_only=True):
    session_id: SessionId
    model: ModelName
    revision: Revision
    hops: tuple[RouteHop, ...]
    attach_ticket: str
    expires_in_s: float


class WorkerInfo(Body, frozen=True, kw_only=True):
    worker_id: WorkerId
    hostname: str
    url: str
    state: WorkerState
    reason: str
    device: str
    precision: str
    memory_bytes: int
    spans: tuple[SpanStatus, ...]
    n_sessions: int
    free_kv_bytes: int
    decode_s_per_block: float
    last_seen_s_ago: float
    version: str = ""
    pinned_blocks: BlockRange | None = None


class ClusterStatus(Body, frozen=True, kw_only=True):
    coordinator_id: CoordinatorId
    version: str
    url: str
    database: str
    database_problem: str = ""
    models: tuple[ModelInfo, ...]
    workers: tuple[WorkerInfo, ...]


class AddModelRequest(_Request, frozen=True, kw_only=True):
    name: ModelName
    revision: Revision
    n_replicas: int = 1


class ChangeModelRequest(_Request, frozen=True, kw_only=True):
    n_replicas: int


class CreateKeyRequest(_Request, frozen=True, kw_only=True):
    name: str
    kind: KeyKind = "client"


class CreatedKey(Body, frozen=True, kw_only=True):
    key_id: KeyId
    key: str


class KeyInfo(Body, frozen=True, kw_only=True):
    key_id: KeyId
    name: str
    kind: KeyKind
    created_at: str
    revoked_at: str | None = None


class KeyList(Body, frozen=True, kw_only=True):
    keys: tuple[KeyInfo, ...]


class ChallengeRequest(Body, frozen=True, kw_only=True):
    protocol_version: str
    worker_id: WorkerId
    client_nonce: str


class Challenge(Body, frozen=True, kw_only=True):
    protocol_version: str
    coordinator_id: CoordinatorId
    server_nonce: str
    expires_in_s: float


class JoinRequest(Body, frozen=True, kw_only=True):
    worker_id: WorkerId
    client_nonce: str
    server_nonce: str
    certificate_request_pem: str
    time_s: float


class JoinGrant(Body, frozen=True, kw_only=True):
    certificate_pem: str
    ca_pem: str
    session_token: str
    session_token_expires_in_s: float
    ticket_key: str
    coordinator_id: CoordinatorId


class SourcesRequest(Body, frozen=True, kw_only=True):
    files: tuple[FileHash, ...]


class Source(Body, frozen=True, kw_only=True):
    worker_id: WorkerId
    url: str


class SourcesAnswer(Body, frozen=True, kw_only=True):
    sources: dict[FileHash, tuple[Source, ...]]


class BadSource(Body, frozen=True, kw_only=True):
    worker_id: WorkerId
    file: FileHash
