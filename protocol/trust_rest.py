"""Bodies of the requests by which operators see and decide how far workers are trusted, and of the answers."""

from __future__ import annotations

from typing import Literal

from protocol.cluster_rest import TrustLevel
from protocol.ids import WorkerId
from protocol.rest import Body

MAX_TRUST_REASON = 500
"""Characters of why an operator decided."""


class TrustInfo(Body, frozen=True, kw_only=True):
    """How far one worker is trusted now."""

    worker_id: WorkerId
    hostname: str
    score: float
    level: TrustLevel
    reason: str
    """What speaks against it, or what it lacks; empty if nothing."""
    pinned: float | None = None
    """The score that an operator gave it, whatever the evidence."""
    banned_reason: str | None = None


class TrustList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/trust`: all workers, the least trusted first.

    Scores change with time: a worker whose score passes the end of a page is on two pages then, or on none.
    """

    workers: tuple[TrustInfo, ...]
    next_cursor: str | None = None


class TrustOpinion(Body, frozen=True, kw_only=True):
    """What one reporter's evidence of one kind comes to now."""

    reporter: str
    """`key:ID`, `worker:ID`, or `coordinator`."""
    kind: str
    weight: float


class TrustEventInfo(Body, frozen=True, kw_only=True):
    """One change of trust. `at` is ISO 8601, UTC."""

    at: str
    kind: str
    reporter: str
    weight: float
    score_before: float
    score_after: float
    reason: str


class TrustSummary(Body, frozen=True, kw_only=True):
    """What older events of one kind came to. Times are ISO 8601, UTC."""

    kind: str
    n_events: int
    weight: float
    first_at: str
    last_at: str


class TrustHistory(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/workers/{id}/trust`: how far it is trusted, and why. Newest events first."""

    trust: TrustInfo
    opinions: tuple[TrustOpinion, ...]
    events: tuple[TrustEventInfo, ...]
    older: tuple[TrustSummary, ...]


class TrustRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`POST /admin/v1/workers/{id}/trust`: decide about a worker, and say why."""

    action: Literal["pin", "unpin", "ban", "pardon"]
    score: float | None = None
    """Of a pin, and of a pin only."""
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse what can't be meant. ValueError: msgspec reports it as invalid."""
        if (self.action == "pin") != (self.score is not None):
            raise ValueError("a score belongs to a pin, and only to a pin")
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"the score is {self.score}; it must be between 0 and 1")
        if len(self.reason) > MAX_TRUST_REASON:
            raise ValueError(f"the reason has {len(self.reason)} characters; at most {MAX_TRUST_REASON}")
