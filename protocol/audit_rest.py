"""Bodies of the requests by which operators have workers audited and see what audits found, and of the answers."""

from __future__ import annotations

from typing import Literal

from protocol.admin_rest import PageQuery, Words
from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.rest import Body

AuditOutcome = Literal["passed", "failed", "suspected", "unanswered", "undecided"]
"""suspected: two differ, and nobody could say which is wrong; or it failed by too few probes. unanswered: the
worker refused, or was silent. undecided: there was nobody to compare it with but itself, or one that contradicts
itself, or it was busy, or can't be reached; this says nothing of it."""


class AuditInfo(Body, frozen=True, kw_only=True):
    """`POST /admin/v1/workers/{id}/audits`: one audit, and what it found. `at` is ISO 8601, UTC."""

    at: str
    worker_id: WorkerId
    model: ModelName
    blocks: BlockRange
    partner: str
    """The worker that it was compared with; `recorded`: an earlier answer of another; `own record`: of itself;
    `own repeat`: asked the same twice, of itself; empty: nobody."""
    referee: str
    """Who decided between the two, likewise; empty if they agree, or nobody could."""
    outcome: AuditOutcome
    partner_outcome: AuditOutcome
    difference: float | None
    """Between the two, as far as the audit came."""
    allowed: float | None
    reason: str


class AuditsQuery(PageQuery, frozen=True, kw_only=True):
    """`GET /admin/v1/audits`: which audits."""

    worker: Words | None = None
    """Only those of this worker, or that it was compared in: its id, or the beginning of it."""


class AuditList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/audits`: the newest audits, newest first."""

    share: float
    """Of a worker's time that audits may take (`coord serve --audit-share`); 0: there are none but by hand."""
    audits: tuple[AuditInfo, ...]
    next_cursor: str | None = None
