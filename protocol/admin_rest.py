"""Bodies and query parameters of the admin API beyond the cluster's status: pages, keys, workers, the audit log.

JSON on the wire. All of it since 1.2.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec

from protocol.cluster_rest import TrustLevel, WorkerInfo
from protocol.control_messages import WorkerState
from protocol.ids import KeyId, ModelName
from protocol.key_rest import KeyKind
from protocol.rest import Body, Query

MAX_PAGE = 1000
MAX_QUERY_CHARS = 200
MAX_GRACE_S = 7 * 86_400
DEFAULT_GRACE_S = 3600
"""How long a rotated key's old secret is good for, so that whoever holds it can be given the new one."""

Words = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_QUERY_CHARS)]
Since = Annotated[datetime, msgspec.Meta(tz=True)]


class PageQuery(Query, frozen=True, kw_only=True):
    """A list in pages. Every page but the last has a `next_cursor`, which the next request gives as `cursor`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = MAX_PAGE
    """Entries of a page."""
    cursor: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    """Where to go on, as the page before said; the other parameters stay as they were."""


# ------------------------------------------------------------------ keys


class KeyQuery(PageQuery, frozen=True, kw_only=True):
    """`GET /admin/v1/keys`: which keys."""

    kind: KeyKind | None = None
    is_revoked: bool | None = None
    name: Words | None = None
    """Part of the name, in upper or lower case."""


class ChangeKeyRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`PATCH /admin/v1/keys/{key_id}`."""

    name: str


class RotateKeyRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /admin/v1/keys/{key_id}/rotate`: a new secret; the old one is good for `grace_s` more."""

    grace_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_GRACE_S)] = DEFAULT_GRACE_S


class RotatedKey(Body, frozen=True, kw_only=True):
    """The only time that the new key is shown."""

    key_id: KeyId
    key: str
    old_until: str
    """Until when the old one is good. ISO 8601, UTC."""


# ------------------------------------------------------------------ workers


class WorkerQuery(PageQuery, frozen=True, kw_only=True):
    """`GET /admin/v1/workers`: which workers."""

    state: WorkerState | None = None
    model: ModelName | None = None
    """Only those that hold blocks of it."""
    trust_level: TrustLevel | None = None
    owner: Annotated[str, msgspec.Meta(max_length=MAX_QUERY_CHARS)] | None = None
    """Only this owner's; empty: nobody's in particular."""


class WorkerList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/workers`, by id."""

    workers: tuple[WorkerInfo, ...]
    next_cursor: str | None = None


class RemoveWorkerQuery(Query, frozen=True, kw_only=True):
    """`DELETE /admin/v1/workers/{worker_id}`."""

    force: bool = False
    """Have one that is still there drained; it can be removed once it has gone."""


# ------------------------------------------------------------------ the audit log


class AuditQuery(PageQuery, frozen=True, kw_only=True):
    """`GET /admin/v1/audit`: which lines."""

    who: Annotated[str, msgspec.Meta(pattern="^((key|worker):[^:]{1,64}|coordinator)$")] | None = None
    """`key:ID`, `worker:ID`, or `coordinator`."""
    action: Words | None = None
    subject: Words | None = None
    """What it was done to: a key's id, a worker's, a model's name, `cluster`."""
    since: Since | None = None
    """ISO 8601 with a zone: `2026-11-01T00:00:00Z`."""
    until: Since | None = None


class AuditEntry(Body, frozen=True, kw_only=True):
    """One line of the audit log."""

    entry_id: int
    at: str
    """ISO 8601, UTC."""
    who: str
    action: str
    subject: str
    details: str
    before: dict[str, Any] | None = None
    """What was changed, as it was; None where nothing was, or it isn't a change."""
    after: dict[str, Any] | None = None


class AuditPage(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/audit`, newest first."""

    entries: tuple[AuditEntry, ...]
    next_cursor: str | None = None
    known_actions: tuple[str, ...] = ()
    """Where none is of the action that was asked for: those that the log has lines of."""


# ------------------------------------------------------------------ what ETags are made of


class KeySettings(Body, frozen=True, kw_only=True):
    """All of a key that operators change."""

    name: str
    kind: KeyKind
    secret_hash: str
    revoked_at: str | None
    limits: dict[str, Any]
    owner: str


class ModelSettings(Body, frozen=True, kw_only=True):
    """All of a model that operators change."""

    revision: str
    n_replicas: int
    signed_by: str | None
    pinned_ends: bool


class WorkerSettings(Body, frozen=True, kw_only=True):
    """All of a worker that operators change."""

    owner: str
    pinned: float | None
    banned_reason: str | None
    is_asked_to_leave: bool
