"""What was seen of workers, or decided about them, that their trust hangs on: a part of `policy.events`."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.policy.trust import Evidence
from protocol.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Evidence on one worker, with what it is in words."""

    worker_id: WorkerId
    evidence: Evidence
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSeen:
    """Others saw workers do well or badly."""

    items: tuple[Seen, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEnded:
    """An audit is over: the evidence that came of it, and whom it accuses without having shown it again."""

    items: tuple[Seen, ...]
    compared: tuple[WorkerId, ...]
    """Workers that were compared with one another, or with itself: earlier accusations are an audit older now."""
    accused: WorkerId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPinned:
    """An operator decided on a worker's score, whatever the evidence."""

    worker_id: WorkerId
    score: float
    by: str
    """The operator's key."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustUnpinned:
    """An operator had the evidence count again."""

    worker_id: WorkerId
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBanned:
    """An operator put a worker out for good: its control socket is closed, and it can't join any more."""

    worker_id: WorkerId
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPardoned:
    """An operator took back ban, quarantine and pin, and had all be forgotten that speaks against a worker."""

    worker_id: WorkerId
    by: str
    reason: str


TrustEvent = EvidenceSeen | AuditEnded | TrustPinned | TrustUnpinned | WorkerBanned | WorkerPardoned
