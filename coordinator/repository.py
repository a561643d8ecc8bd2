"""Every query but those of the lease. One method is one transaction: all of it happened, or nothing did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from coordinator.persistence import insert_audit, load_stored_state, persist
from coordinator.policy.effects import Effect, SendToWorker
from coordinator.policy.state import StoredState
from coordinator.tables import ApiKeyRow, AuditRow, GenerationRow, SettingRow
from coordinator.transactions import Transactions
from protocol.control_messages import GenerationReport
from protocol.errors import ConflictError, NotFoundError
from protocol.ids import CoordinatorId, KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.rest import KeyKind

MAX_AUDIT_LINES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """An API key as it is kept: `secret_hash` is `protocol.api_key.secret_hash` of its secret."""

    key_id: KeyId
    name: str
    kind: KeyKind
    secret_hash: str = field(repr=False)
    created_at: datetime
    revoked_at: datetime | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLine:
    """One line of the audit log."""

    at: datetime
    action: str
    subject: str
    details: str


class Repository:
    """The database behind typed methods. All of them raise `StorageError` if it can't be used."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.transactions = Transactions(engine)

    @property
    def kind(self) -> str:
        """Kind of database: `sqlite` or `postgresql`."""
        return self.transactions.database

    @property
    def problem(self) -> str:
        """Why the database couldn't be used when it last was to be; empty if it could."""
        return self.transactions.problem

    # -------------------------------------------------------------- the cluster

    async def check_owner(self, coordinator_id: CoordinatorId) -> None:
        """See that the database is this coordinator's, or nobody's yet.

        Raises:
            ConflictError: it is another coordinator's: epochs and keys of two clusters must never mix.
        """
        async with self.transactions.reading() as session:
            row = await session.get(SettingRow, "coordinator_id")
            if row is not None and row.value != coordinator_id:
                raise ConflictError(
                    f"the database belongs to coordinator {row.value}, and the state folder to {coordinator_id}: "
                    "use the state folder that goes with it (--state), or an empty database (--database-url)"
                )

    async def claim(self, coordinator_id: CoordinatorId) -> None:
        """Make the database this coordinator's at its first use.

        Raises:
            ConflictError: as `check_owner`.
        """
        await self.check_owner(coordinator_id)
        async with self.transactions.writing() as session:
            if await session.get(SettingRow, "coordinator_id") is None:
                session.add(SettingRow(key="coordinator_id", value=coordinator_id))

    async def load_state(self) -> StoredState:
        """All workers with their assignments, and the models in the order in which they were added."""
        async with self.transactions.reading() as session:
            return await load_stored_state(session)

    async def apply(self, effects: Sequence[Effect]) -> None:
        """Carry out the persistent ones of `effects`, in order, all or none; messages are passed over."""
        persistent = [effect for effect in effects if not isinstance(effect, SendToWorker)]
        if not persistent:
            return
        async with self.transactions.writing() as session:
            for effect in persistent:
                await persist(session, effect)

    # -------------------------------------------------------------- API keys

    async def add_api_key(
        self, key_id: KeyId, name: str, kind: KeyKind, secret_hash: str, now: datetime
    ) -> StoredKey:
        """Keep a new key; ConflictError if the id is taken."""
        async with self.transactions.writing() as session:
            if await session.get(ApiKeyRow, key_id) is not None:
                raise ConflictError(f"there is a key {key_id} already")
            row = ApiKeyRow(
                key_id=key_id, name=name, kind=kind, secret_hash=secret_hash, created_at=now, revoked_at=None
            )
            session.add(row)
            insert_audit(session, now, "key_created", key_id, f"{kind}: {name}")
            return _stored_key(row)

    async def api_key(self, key_id: KeyId) -> StoredKey | None:
        """The key, revoked or not; None if there is none."""
        async with self.transactions.reading() as session:
            row = await session.get(ApiKeyRow, key_id)
            return None if row is None else _stored_key(row)

    async def api_keys(self) -> tuple[StoredKey, ...]:
        """All keys, oldest first."""
        async with self.transactions.reading() as session:
            rows = await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.key_id))
            return tuple(_stored_key(row) for row in rows)

    async def revoke_api_key(self, key_id: KeyId, now: datetime) -> StoredKey:
        """Refuse the key from now on; revoking again changes nothing. NotFoundError if there is none."""
        async with self.transactions.writing() as session:
            row = await session.get(ApiKeyRow, key_id)
            if row is None:
                raise NotFoundError(f"there is no key {key_id[:64]!r}; `coord key list` shows them")
            if row.revoked_at is None:
                row.revoked_at = now
                insert_audit(session, now, "key_revoked", key_id, f"{row.kind}: {row.name}")
            return _stored_key(row)

    # -------------------------------------------------------------- generations

    async def record_generation(
        self,
        session_id: SessionId,
        key_id: KeyId,
        model: ModelName,
        revision: Revision,
        route: Sequence[tuple[WorkerId, int, int]],
        n_prompt_tokens: int,
        max_tokens: int,
        now: datetime,
        *,
        continues: SessionId | None = None,
    ) -> None:
        """Keep that a route was given. `route`: (worker, first block, end) from head to tail."""
        async with self.transactions.writing() as session:
            session.add(
                GenerationRow(
                    session_id=session_id,
                    key_id=key_id,
                    model=model,
                    revision=revision,
                    route=[list(hop) for hop in route],
                    n_prompt_tokens=n_prompt_tokens,
                    max_tokens=max_tokens,
                    started_at=now,
                    continues=continues,
                )
            )

    async def finish_generation(
        self, report: GenerationReport, now: datetime, *, reported_by: WorkerId | None = None
    ) -> StoredGeneration | None:
        """Keep what a generation used; None if it isn't known, was finished before, or isn't the reporter's.

        The first report counts. With `reported_by`, only the tail of the generation's route is believed, and never
        more tokens than were allowed.
        """
        async with self.transactions.writing() as session:
            row = await session.get(GenerationRow, report.session_id)
            if row is None or row.finished_at is not None:
                return None
            if reported_by is not None and row.route[-1][0] != reported_by:
                return None
            n_completion_tokens = min(max(report.n_completion_tokens, 0), row.max_tokens)
            done = await session.execute(
                update(GenerationRow)
                .where(GenerationRow.session_id == report.session_id, GenerationRow.finished_at.is_(None))
                .values(n_completion_tokens=n_completion_tokens, outcome=report.outcome, finished_at=now)
                .returning(GenerationRow)
            )
            finished = done.scalar()
            return None if finished is None else _stored_generation(finished)

    async def generation(self, session_id: SessionId) -> StoredGeneration | None:
        """One generation; None if there is none."""
        async with self.transactions.reading() as session:
            row = await session.get(GenerationRow, session_id)
            return None if row is None else _stored_generation(row)

    # -------------------------------------------------------------- audit log

    async def audit_lines(self, n_lines: int = 100) -> tuple[AuditLine, ...]:
        """The newest lines of the audit log, newest first, at most `MAX_AUDIT_LINES`."""
        async with self.transactions.reading() as session:
            query = select(AuditRow).order_by(AuditRow.id.desc()).limit(min(n_lines, MAX_AUDIT_LINES))
            return tuple(
                AuditLine(at=row.at, action=row.action, subject=row.subject, details=row.details)
                for row in await session.scalars(query)
            )


def _stored_key(row: ApiKeyRow) -> StoredKey:
    return StoredKey(
        key_id=KeyId(row.key_id),
        name=row.name,
        kind="admin" if row.kind == "admin" else "client",
        secret_hash=row.secret_hash,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )


def _stored_generation(row: GenerationRow) -> StoredGeneration:
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
    )
