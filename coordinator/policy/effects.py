"""What is to be done, in the imperative: what `transition.apply` returns beside the new state.

`Cluster.handle` has the repository carry out the `Persistent` ones in order, in one transaction, then sends the
messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coordinator.policy.authors import Author
from coordinator.policy.evidence_weights import EvidenceKind
from coordinator.policy.pins import Pin
from coordinator.policy.trust import Reporter, TrustRecord
from coordinator.policy.under_way import Moving
from protocol.author_keys import AuthorKey
from protocol.control_messages import CoordinatorToWorker, DeviceReport, SpanAssignment
from protocol.ids import ModelName, Revision, WorkerId
from protocol.manifest import Manifest
from protocol.model_signature import ModelSignature

WorkerStatus = Literal["enrolled", "present", "departing", "draining", "gone"]
"""What is kept of a worker's life: whether it is silent or lost is known only while the coordinator runs."""

AuditAction = Literal[
    "worker_joined",
    "worker_lost",
    "worker_gone",
    "worker_draining",
    "drain_asked",
    "drain_withdrawn",
    "model_added",
    "model_replaced",
    "replicas_asked",
    "model_removed",
    "replanned",
    "moving_ended",
    "bad_source",
    "worker_quarantined",
    "worker_released",
    "trust_pinned",
    "trust_unpinned",
    "worker_banned",
    "worker_pardoned",
    "worker_removed",
    "author_added",
    "author_removed",
    "model_signed",
    "pinned_ends_asked",
    "settings_changed",
    "audit_asked",
    "assignment_pinned",
    "assignment_unpinned",
    "assignment_moved",
    "join_secret_rotated",
    "signing_key_rotated",
    "rotation_failed",
]

AuditView = Mapping[str, Any] | None
"""What an operator changed, as it was before or is after; None: nothing was there, or it isn't a change."""

TrustEventKind = (
    EvidenceKind | Literal["quarantined", "released", "forgiven", "pinned", "unpinned", "banned", "pardoned"]
)
"""What changes trust: evidence, time (forgiven), what follows from the score, and what operators decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToWorker:
    """Put a message into a worker's outbox; of no consequence if the worker isn't connected."""

    worker_id: WorkerId
    message: CoordinatorToWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveWorker:
    """Insert or overwrite the row of a worker."""

    worker_id: WorkerId
    status: WorkerStatus
    hostname: str
    url: str
    device: DeviceReport | None
    """As last announced; None until it has connected once."""
    seen_s: float
    """Seconds since 1970, UTC."""
    starts_by_s: float | None = None
    """While it is starting: when it counts as lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteWorker:
    """Delete a worker with its assignment; what is known of its trust stays."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveAssignment:
    """Replace the assignment of a worker: these spans, this epoch, which is kept when `spans` is empty too.

    The worker's row was saved before; the models of the spans too.
    """

    worker_id: WorkerId
    epoch: int
    spans: tuple[SpanAssignment, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveModel:
    """Insert a model, or replace what its name stands for."""

    name: ModelName
    revision: Revision
    manifest: Manifest
    n_replicas: int = 1
    signature: ModelSignature | None = None
    pinned_ends: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteModel:
    """Delete a model; the assignments that named it are saved (without it) before."""

    name: ModelName


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveAuthor:
    """Insert an author whom operators trust."""

    author: Author


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteAuthor:
    """Delete an author."""

    key: AuthorKey


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteAudit:
    """Append a line to the audit log."""

    at_s: float
    """Seconds since 1970, UTC."""
    action: AuditAction
    subject: str
    """The worker's id, the model's name, or `cluster`."""
    details: str
    before: AuditView = None
    after: AuditView = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveTrust:
    """Insert or overwrite what is kept of a worker's trust."""

    worker_id: WorkerId
    record: TrustRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTrust:
    """Delete what is kept of a worker's trust, nothing of which counts any more; its events stay."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTrustEvent:
    """Append a line to the history of a worker's trust."""

    at_s: float
    """Seconds since 1970, UTC."""
    worker_id: WorkerId
    kind: TrustEventKind
    reporter: Reporter
    weight: float
    score_before: float
    score_after: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SumUpTrustEvents:
    """Put all but the newest `n_kept` events of a worker into one line a kind."""

    worker_id: WorkerId
    n_kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavePin:
    """Insert or overwrite what an operator has a worker hold."""

    worker_id: WorkerId
    pin: Pin


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePin:
    """Delete it."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSetting:
    """Insert or overwrite a setting that was changed while the coordinator runs."""

    name: str
    value: str | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveMoveAsked:
    """Keep whether what an operator asked to be placed anew still is to be, so that a restart doesn't end it."""

    is_asked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveMoving:
    """Keep what is being moved, for a coordinator that comes after this one; None: nothing is."""

    moving: Moving | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteSetting:
    """Delete it: what was given at the start counts again, else the default."""

    name: str


Persistent = (
    SaveWorker
    | DeleteWorker
    | SaveAssignment
    | SaveModel
    | DeleteModel
    | SaveAuthor
    | DeleteAuthor
    | WriteAudit
    | SaveTrust
    | DeleteTrust
    | WriteTrustEvent
    | SumUpTrustEvents
    | SavePin
    | DeletePin
    | SaveSetting
    | DeleteSetting
    | SaveMoveAsked
    | SaveMoving
)
Effect = SendToWorker | Persistent
