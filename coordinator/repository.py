"""Every query but those of the lease. One method is one transaction: all of it happened, or nothing did."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from coordinator.admin_requests import AdminRequests
from coordinator.audit_log import AuditLog
from coordinator.generation_rows import RatesLeft, hold_begun
from coordinator.key_changes import KeyChanges
from coordinator.log_tables import AuditRow
from coordinator.persistence import insert_audit, load_stored_state, persist
from coordinator.policy.effects import Effect, SendToWorker
from coordinator.policy.stored import StoredState
from coordinator.postgres_routes import PostgresRoutes
from coordinator.quota_book import QuotaBook, new_quota
from coordinator.quota_usage import UsageBook
from coordinator.sqlite_routes import SqliteRoutes
from coordinator.stored_rows import (
    AuditLine,
    NewGeneration,
    ReportedEnd,
    StoredGeneration,
    StoredKey,
    after_key,
    stored_generation,
    stored_key,
)
from coordinator.tables import ApiKeyRow, GenerationRow, QuotaRow, SettingRow
from coordinator.transactions import Transactions
from coordinator.trust_store import trust_history
from protocol.control_messages import GenerationReport
from protocol.errors import BrigadeError, ConflictError, NotFoundError
from protocol.ids import CoordinatorId, KeyId, SessionId, WorkerId
from protocol.key_limits import UNLIMITED, KeyLimits
from protocol.key_rest import KeyKind
from protocol.trust_rest import TrustEventInfo, TrustSummary

MAX_AUDIT_LINES = 1000


class Repository:
    """The database behind typed methods. All of them raise `StorageError` if it can't be used."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.transactions = Transactions(engine)
        is_postgres = self.kind == "postgresql"
        self._routes = PostgresRoutes(self.transactions) if is_postgres else SqliteRoutes(self.transactions)
        self.quotas = QuotaBook(self.transactions)
        self.usage = UsageBook(self.transactions)
        self.keys = KeyChanges(self.transactions)
        self.requests = AdminRequests(self.transactions)
        self.audit_log = AuditLog(self.transactions)

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

        def work(session: Session) -> None:
            for effect in persistent:
                persist(session, effect)

        await self.transactions.write(work)

    async def trust_history(
        self, worker_id: WorkerId, n_events: int = MAX_AUDIT_LINES
    ) -> tuple[tuple[TrustEventInfo, ...], tuple[TrustSummary, ...]]:
        """The newest changes of a worker's trust, newest first, and what older ones came to."""
        async with self.transactions.reading() as session:
            return await trust_history(session, worker_id, min(n_events, MAX_AUDIT_LINES))

    # -------------------------------------------------------------- API keys

    async def add_api_key(
        self,
        key_id: KeyId,
        name: str,
        kind: KeyKind,
        secret_hash: str,
        now: datetime,
        *,
        limits: KeyLimits = UNLIMITED,
        owner: str = "",
    ) -> StoredKey:
        """Keep a new key; ConflictError if the id is taken."""
        async with self.transactions.writing() as session:
            if await session.get(ApiKeyRow, key_id) is not None:
                raise ConflictError(f"there is a key {key_id} already")
            row = ApiKeyRow(
                key_id=key_id,
                name=name,
                kind=kind,
                secret_hash=secret_hash,
                created_at=now,
                revoked_at=None,
                owner=owner,
            )
            session.add(row)
            quota = None if limits == UNLIMITED else new_quota(key_id, limits, now)
            if quota is not None:
                await session.flush()
                session.add(quota)
            stored = stored_key(row, quota)
            insert_audit(session, now, "key_created", key_id, f"{kind}: {name}", after=stored.view())
            return stored

    async def api_key(self, key_id: KeyId, within_s: float | None = None) -> StoredKey | None:
        """The key, revoked or not; None if there is none. `within_s` as in `Transactions.reading`."""
        async with self.transactions.reading(within_s) as session:
            found = (await session.execute(_keys().where(ApiKeyRow.key_id == key_id))).one_or_none()
            return None if found is None else stored_key(*found)

    async def api_keys_of(self, key_ids: Collection[KeyId]) -> tuple[StoredKey, ...]:
        """Those of these keys that there are, revoked or not."""
        async with self.transactions.reading() as session:
            found = await session.execute(_keys().where(ApiKeyRow.key_id.in_(key_ids)))
            return tuple(stored_key(key, quota) for key, quota in found)

    async def api_keys(self, *, after: KeyId | None = None, n_keys: int | None = None) -> tuple[StoredKey, ...]:
        """Keys, oldest first: those that come after one of them, so many, or all."""
        query = after_key(_keys(), after).order_by(ApiKeyRow.created_at, ApiKeyRow.key_id).limit(n_keys)
        async with self.transactions.reading() as session:
            return tuple(stored_key(key, quota) for key, quota in await session.execute(query))

    async def revoke_api_key(self, key_id: KeyId, now: datetime) -> StoredKey:
        """Refuse the key from now on; revoking again changes nothing. NotFoundError if there is none."""
        async with self.transactions.writing() as session:
            row = await session.get(ApiKeyRow, key_id)
            if row is None:
                raise NotFoundError(f"there is no key {key_id[:64]!r}; `coord key list` shows them")
            quota = await session.get(QuotaRow, key_id)
            if row.revoked_at is None:
                before = stored_key(row, quota).view()
                row.revoked_at = now
                after = stored_key(row, quota).view()
                details = f"{row.kind}: {row.name}"
                insert_audit(session, now, "key_revoked", key_id, details, before=before, after=after)
            return stored_key(row, quota)

    # -------------------------------------------------------------- generations

    async def record_generation(self, new: NewGeneration) -> None:
        """As `record_generations`, of one; raises its refusal."""
        (refusal,) = await self.record_generations([new])
        if refusal is not None:
            raise refusal

    async def record_generations(
        self,
        generations: Sequence[NewGeneration],
        quota_clock: Callable[[], float] | None = None,
        left: RatesLeft | None = None,
    ) -> list[BrigadeError | None]:
        """Keep that routes were given, and hold what they may use; for each why a limit doesn't allow it, or None.

        Of one that isn't allowed nothing is kept. They are decided in order, each by what those before it left.
        Quotas go by `quota_clock` as it is once it is this transaction's turn; without one, by the times given.
        `left`: takes what is left of their keys' rates then.
        """
        return await self.record_due(lambda: generations, quota_clock, left)

    def route_comes(self) -> AbstractContextManager[None]:
        """While it lasts, a route is to be recorded."""
        return self._routes.coming()

    async def record_due(
        self,
        due: Callable[[], Sequence[NewGeneration]],
        quota_clock: Callable[[], float] | None = None,
        left: RatesLeft | None = None,
    ) -> list[BrigadeError | None]:
        """As `record_generations`, of those that are `due` when they can be written; it is asked once."""
        return await self._routes.begin(due, quota_clock, left)

    async def finish_generation(
        self, report: GenerationReport, now: datetime, *, reported_by: WorkerId | None = None
    ) -> StoredGeneration | None:
        """As `finish_generations`, of one."""
        (finished,) = await self.finish_generations([ReportedEnd(report=report, at=now, reported_by=reported_by)])
        return finished

    async def finish_generations(
        self, ends: Sequence[ReportedEnd], quota_clock: Callable[[], float] | None = None
    ) -> list[StoredGeneration | None]:
        """Keep what generations used; None for one that isn't known, is finished, or isn't the reporter's.

        What was held for one and isn't used is given back. The first report counts, and if the same comes again the
        generation is as that left it, with the time of the first in `finished_at`; only the tail of the
        generation's route is believed, and never more tokens than were allowed. `quota_clock` as in
        `record_generations`.
        """
        return await self._routes.finish(ends, quota_clock)

    async def hold_begun(
        self,
        heads: Mapping[SessionId, WorkerId],
        quota_clock: Callable[[], float],
        over: Collection[SessionId] = (),
    ) -> list[StoredGeneration]:
        """Hold on to what sessions may use that these heads say were opened; those for which it was too late.

        Of those that are `over` at their heads it is given back soon, if their tails don't report them.

        Of one that isn't known, is over or isn't the head's nothing is changed.
        """
        return await self.transactions.write_rows(lambda rows: hold_begun(rows, heads, quota_clock, over))

    async def generation(self, session_id: SessionId) -> StoredGeneration | None:
        """One generation; None if there is none."""
        async with self.transactions.reading() as session:
            row = await session.get(GenerationRow, session_id)
            return None if row is None else stored_generation(row)

    async def unfinished_generations(
        self, since: datetime, key_id: KeyId | None = None
    ) -> tuple[StoredGeneration, ...]:
        """Those that began since then and weren't reported, newest first; of this key, or of keys revoked since."""
        query = (
            select(GenerationRow)
            .where(GenerationRow.started_at >= since, GenerationRow.finished_at.is_(None))
            .order_by(GenerationRow.started_at.desc())
        )
        if key_id is None:
            revoked = select(ApiKeyRow.key_id).where(ApiKeyRow.revoked_at >= since)
            query = query.where(GenerationRow.key_id.in_(revoked))
        else:
            query = query.where(GenerationRow.key_id == key_id)
        async with self.transactions.reading() as session:
            return tuple(stored_generation(row) for row in await session.scalars(query))

    # -------------------------------------------------------------- audit log

    async def audit_lines(self, n_lines: int = 100) -> tuple[AuditLine, ...]:
        """The newest lines of the audit log, newest first, at most `MAX_AUDIT_LINES`."""
        async with self.transactions.reading() as session:
            query = select(AuditRow).order_by(AuditRow.id.desc()).limit(min(n_lines, MAX_AUDIT_LINES))
            return tuple(
                AuditLine(at=row.at, action=row.action, subject=row.subject, details=row.details)
                for row in await session.scalars(query)
            )


def _keys() -> Select[ApiKeyRow, QuotaRow | None]:
    return select(ApiKeyRow, QuotaRow).join(QuotaRow, QuotaRow.key_id == ApiKeyRow.key_id, isouter=True)
