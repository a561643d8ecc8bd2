"""Every query but those of the lease. One method is one transaction: all of it happened, or nothing did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncEngine

from coordinator.persistence import insert_audit, load_stored_state, persist
from coordinator.policy.effects import Effect, SendToWorker
from coordinator.policy.quota import Wanted
from coordinator.policy.state import StoredState
from coordinator.quota_book import QuotaBook, new_quota
from coordinator.quota_rows import Reserving, Settling
from coordinator.quota_usage import UsageBook, add_usage
from coordinator.stored_rows import (
    AuditLine,
    NewGeneration,
    ReportedEnd,
    StoredGeneration,
    StoredKey,
    stored_generation,
    stored_key,
)
from coordinator.tables import ApiKeyRow, AuditRow, GenerationRow, QuotaRow, ReservationRow, SettingRow
from coordinator.transactions import Transactions
from coordinator.trust_store import trust_history
from protocol.control_messages import GenerationReport
from protocol.errors import BrigadeError, ConflictError, NotFoundError, OverLimitError, QuotaExceededError
from protocol.ids import CoordinatorId, KeyId, SessionId, WorkerId
from protocol.key_limits import UNLIMITED, KeyLimits
from protocol.rest import KeyKind
from protocol.trust_rest import TrustEventInfo, TrustSummary

MAX_AUDIT_LINES = 1000


class Repository:
    """The database behind typed methods. All of them raise `StorageError` if it can't be used."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.transactions = Transactions(engine)
        self.quotas = QuotaBook(self.transactions)
        self.usage = UsageBook(self.transactions)

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
    ) -> StoredKey:
        """Keep a new key; ConflictError if the id is taken."""
        async with self.transactions.writing() as session:
            if await session.get(ApiKeyRow, key_id) is not None:
                raise ConflictError(f"there is a key {key_id} already")
            row = ApiKeyRow(
                key_id=key_id, name=name, kind=kind, secret_hash=secret_hash, created_at=now, revoked_at=None
            )
            session.add(row)
            quota = None if limits == UNLIMITED else new_quota(key_id, limits, now)
            if quota is not None:
                await session.flush()
                session.add(quota)
            insert_audit(session, now, "key_created", key_id, f"{kind}: {name}")
            return stored_key(row, quota)

    async def api_key(self, key_id: KeyId) -> StoredKey | None:
        """The key, revoked or not; None if there is none."""
        async with self.transactions.reading() as session:
            found = (await session.execute(_keys().where(ApiKeyRow.key_id == key_id))).one_or_none()
            return None if found is None else stored_key(*found)

    async def api_keys(self) -> tuple[StoredKey, ...]:
        """All keys, oldest first."""
        async with self.transactions.reading() as session:
            found = await session.execute(_keys().order_by(ApiKeyRow.created_at, ApiKeyRow.key_id))
            return tuple(stored_key(key, quota) for key, quota in found)

    async def revoke_api_key(self, key_id: KeyId, now: datetime) -> StoredKey:
        """Refuse the key from now on; revoking again changes nothing. NotFoundError if there is none."""
        async with self.transactions.writing() as session:
            row = await session.get(ApiKeyRow, key_id)
            if row is None:
                raise NotFoundError(f"there is no key {key_id[:64]!r}; `coord key list` shows them")
            if row.revoked_at is None:
                row.revoked_at = now
                insert_audit(session, now, "key_revoked", key_id, f"{row.kind}: {row.name}")
            return stored_key(row, await session.get(QuotaRow, key_id))

    # -------------------------------------------------------------- generations

    async def record_generation(self, new: NewGeneration) -> None:
        """As `record_generations`, of one; raises its refusal."""
        (refusal,) = await self.record_generations([new])
        if refusal is not None:
            raise refusal

    async def record_generations(
        self, generations: Sequence[NewGeneration], quota_clock: Callable[[], float] | None = None
    ) -> list[BrigadeError | None]:
        """Keep that routes were given, and hold what they may use; for each why a limit doesn't allow it, or None.

        Of one that isn't allowed nothing is kept. They are decided in order, each by what those before it left.
        Quotas go by `quota_clock` as it is once it is this transaction's turn; without one, by the times given.
        """
        refusals: list[BrigadeError | None] = []
        allowed: list[tuple[NewGeneration, ReservationRow | None]] = []
        async with self.transactions.writing() as session:
            continues = [new.continues for new in generations if new.continues is not None]
            reserving = await Reserving.of(session, [new.key_id for new in generations], continues)
            quota_now = _now(quota_clock)
            for new in generations:
                wanted = Wanted(n_prompt_tokens=new.n_prompt_tokens, max_tokens=new.max_tokens)
                try:
                    row = reserving.reserve(new.key_id, new.session_id, wanted, quota_now or new.at, new.continues)
                except (QuotaExceededError, OverLimitError) as refusal:
                    refusals.append(refusal)
                    continue
                allowed.append((new, row))
                refusals.append(None)
            await session.flush()
            session.add_all(new.row(None if row is None else row.id) for new, row in allowed)
        return refusals

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

        What was held for one and isn't used is given back. The first report counts, only the tail of the
        generation's route is believed, and never more tokens than were allowed. `quota_clock` as in
        `record_generations`.
        """
        ids = {end.report.session_id for end in ends}
        query = select(GenerationRow).where(GenerationRow.session_id.in_(ids)).order_by(GenerationRow.session_id)
        async with self.transactions.writing() as session:
            rows = {row.session_id: row for row in await session.scalars(query.with_for_update())}
            settling = await Settling.of_generations(session, rows.values())
            quota_now = _now(quota_clock)
            finished = [end.take(rows.get(end.report.session_id)) for end in ends]
            for end, row in zip(ends, finished, strict=True):
                if row is not None:
                    settling.report(row, end.report, quota_now or end.at)
            await settling.write()
            done = [(row, end.report, end.at) for end, row in zip(ends, finished, strict=True) if row is not None]
            await add_usage(session, done)
            return [None if row is None else stored_generation(row) for row in finished]

    async def generation(self, session_id: SessionId) -> StoredGeneration | None:
        """One generation; None if there is none."""
        async with self.transactions.reading() as session:
            row = await session.get(GenerationRow, session_id)
            return None if row is None else stored_generation(row)

    # -------------------------------------------------------------- audit log

    async def audit_lines(self, n_lines: int = 100) -> tuple[AuditLine, ...]:
        """The newest lines of the audit log, newest first, at most `MAX_AUDIT_LINES`."""
        async with self.transactions.reading() as session:
            query = select(AuditRow).order_by(AuditRow.id.desc()).limit(min(n_lines, MAX_AUDIT_LINES))
            return tuple(
                AuditLine(at=row.at, action=row.action, subject=row.subject, details=row.details)
                for row in await session.scalars(query)
            )


def _now(clock: Callable[[], float] | None) -> datetime | None:
    return None if clock is None else datetime.fromtimestamp(clock(), UTC)


def _keys() -> Select[ApiKeyRow, QuotaRow | None]:
    return select(ApiKeyRow, QuotaRow).join(QuotaRow, QuotaRow.key_id == ApiKeyRow.key_id, isouter=True)
