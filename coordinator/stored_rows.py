"""What the repository gives out of its rows: keys, generations, lines of the audit log, as values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row, Select, and_, or_, select

from coordinator.quota_records import limits_of
from coordinator.tables import ApiKeyRow, GenerationRow, QuotaRow
from protocol.control_messages import GenerationReport
from protocol.ids import KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import UNLIMITED, KeyLimits
from protocol.key_rest import KeyKind

Q = TypeVar("Q", bound=Select[*tuple[Any, ...]])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """An API key as it is kept: `secret_hash` is `protocol.api_key.secret_hash` of its secret."""

    key_id: KeyId
    name: str
    kind: KeyKind
    secret_hash: str = field(repr=False)
    created_at: datetime
    revoked_at: datetime | None
    limits: KeyLimits = UNLIMITED
    old_secret_hash: str | None = field(default=None, repr=False)
    """Of the secret that it had before it was rotated."""
    old_until: datetime | None = None
    """Until when that one is good."""
    owner: str = ""

    def view(self) -> dict[str, Any]:
        """What operators decide about it, for the audit log: nothing that proves anything."""
        return {
            "name": self.name,
            "kind": self.kind,
            "revoked_at": None if self.revoked_at is None else self.revoked_at.isoformat(),
            "old_until": None if self.old_until is None else self.old_until.isoformat(),
            "limits": msgspec.to_builtins(self.limits),
            "owner": self.owner,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGeneration:
    """One generation; what it used, and how and when it ended, is None until its tail has reported."""

    session_id: SessionId
    key_id: KeyId
    model: ModelName
    revision: Revision
    route: tuple[tuple[WorkerId, int, int], ...]
    n_prompt_tokens: int
    max_tokens: int
    started_at: datetime
    n_completion_tokens: int | None
    outcome: str | None
    finished_at: datetime | None
    continues: SessionId | None
    """The failed session that it goes on from."""
    continued_by: SessionId | None = None
    """The latest session by which it goes on."""
    reservation_id: int | None = None
    """What is held for it; None where its key had no limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLine:
    """One line of the audit log."""

    at: datetime
    action: str
    subject: str
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGeneration:
    """A generation for which there is a route."""

    session_id: SessionId
    key_id: KeyId
    model: ModelName
    revision: Revision
    route: tuple[tuple[WorkerId, int, int], ...]
    """(worker, first block, end) from head to tail."""
    n_prompt_tokens: int
    max_tokens: int
    at: datetime
    continues: SessionId | None = None
    replaces: SessionId | None = None
    """A later attempt to go on from the same session, that failed: it runs no more either."""
    is_opening_told: bool = False
    """Whether its head will say that it was opened: what never is, is then given back soon."""

    def values(self, reservation_id: int | None) -> dict[str, Any]:
        """As it is kept: columns of `GenerationRow`."""
        return {
            "session_id": self.session_id,
            "key_id": self.key_id,
            "model": self.model,
            "revision": self.revision,
            "route": [list(hop) for hop in self.route],
            "n_prompt_tokens": self.n_prompt_tokens,
            "max_tokens": self.max_tokens,
            "started_at": self.at,
            "continues": self.continues,
            "reservation_id": reservation_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedEnd:
    """That a generation is over, as its tail reported it."""

    report: GenerationReport
    at: datetime
    reported_by: WorkerId | None = None
    """None: believed without asking who says it."""

    def taken_by(self, generation: StoredGeneration | None) -> StoredGeneration | None:
        """The generation with this in it; None if it isn't known, is finished, or isn't the reporter's."""
        if generation is None or generation.finished_at is not None:
            return None
        if self.reported_by is not None and generation.route[-1][0] != self.reported_by:
            return None
        return replace(
            generation,
            n_completion_tokens=self._n_completion_tokens(generation),
            outcome=self.report.outcome,
            finished_at=self.at,
        )

    def is_in(self, generation: StoredGeneration) -> bool:
        """Whether it is this report that the generation was finished by, whenever that came."""
        return (
            generation.finished_at is not None
            and generation.outcome == self.report.outcome
            and generation.n_completion_tokens == self._n_completion_tokens(generation)
            and self.reported_by in (None, generation.route[-1][0])
        )

    def _n_completion_tokens(self, generation: StoredGeneration) -> int:
        return min(max(self.report.n_completion_tokens, 0), generation.max_tokens)


def stored_key(row: ApiKeyRow, quota: QuotaRow | None) -> StoredKey:
    """A key by its row and, if it has limits, its quota."""
    return StoredKey(
        key_id=KeyId(row.key_id),
        name=row.name,
        kind="admin" if row.kind == "admin" else "client",
        secret_hash=row.secret_hash,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        limits=UNLIMITED if quota is None else limits_of(quota),
        old_secret_hash=row.old_secret_hash,
        old_until=row.old_until,
        owner=row.owner,
    )


def stored_generation(row: GenerationRow | Row[Any]) -> StoredGeneration:
    """A generation by its row, mapped or not."""
    return StoredGeneration(
        session_id=SessionId(row.session_id),
        key_id=KeyId(row.key_id),
        model=ModelName(row.model),
        revision=Revision(row.revision),
        route=tuple((WorkerId(worker_id), start, end) for worker_id, start, end in row.route),
        n_prompt_tokens=row.n_prompt_tokens,
        max_tokens=row.max_tokens,
        started_at=row.started_at,
        n_completion_tokens=row.n_completion_tokens,
        outcome=row.outcome,
        finished_at=row.finished_at,
        continues=None if row.continues is None else SessionId(row.continues),
        continued_by=None if row.continued_by is None else SessionId(row.continued_by),
        reservation_id=row.reservation_id,
    )


def after_key(query: Q, key_id: KeyId | None) -> Q:
    """Those of the query's keys that were made after this one; all of them for None."""
    if key_id is None:
        return query
    made_at = select(ApiKeyRow.created_at).where(ApiKeyRow.key_id == key_id).scalar_subquery()
    is_of_then = and_(ApiKeyRow.created_at == made_at, ApiKeyRow.key_id > key_id)
    return query.where(or_(ApiKeyRow.created_at > made_at, is_of_then))
