"""Generations as operators see them: those that run and those that are over, newest first, with whose they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Row, Select, and_, or_, select

from coordinator.persistence import insert_audit
from coordinator.stored_rows import StoredGeneration
from coordinator.tables import ApiKeyRow, GenerationRow
from coordinator.transactions import Transactions
from protocol.generation_rest import GenerationHop, GenerationInfo, GenerationState
from protocol.ids import BlockRange, KeyId, ModelName, Revision, SessionId, WorkerId

Hostname = Callable[[WorkerId], str]
"""The name of a worker's machine; empty if nothing is known of it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFilter:
    """Which generations; None: whatever it is."""

    state: GenerationState | None = None
    key: KeyId | None = None
    model: ModelName | None = None


class GenerationBook:
    """All of its methods raise `StorageError` if the database can't be used."""

    def __init__(self, transactions: Transactions, hostname: Hostname) -> None:
        self._transactions = transactions
        self._hostname = hostname

    async def generations(
        self,
        wanted: GenerationFilter,
        running_since: datetime,
        *,
        n_generations: int,
        before: tuple[datetime, SessionId] | None = None,
    ) -> tuple[GenerationInfo, ...]:
        """The newest, newest first; of those before one if it is named.

        `running_since`: what was given its route before then runs no more, whether or not its end was reported.
        """
        query = _query().order_by(GenerationRow.started_at.desc(), GenerationRow.session_id.desc())
        is_running = and_(GenerationRow.finished_at.is_(None), GenerationRow.started_at >= running_since)
        is_running = and_(is_running, GenerationRow.continued_by.is_(None))
        if wanted.state is not None:
            query = query.where(is_running if wanted.state == "running" else ~is_running)
        if wanted.key is not None:
            query = query.where(GenerationRow.key_id == wanted.key)
        if wanted.model is not None:
            query = query.where(GenerationRow.model == wanted.model)
        if before is not None:
            at, session_id = before
            is_same_time = and_(GenerationRow.started_at == at, GenerationRow.session_id < session_id)
            query = query.where(or_(GenerationRow.started_at < at, is_same_time))
        async with self._transactions.reading() as session:
            rows = await session.execute(query.limit(n_generations))
            return tuple(self._info(row, running_since) for row in rows)

    async def generation(self, session_id: SessionId, running_since: datetime) -> GenerationInfo | None:
        """One of them; None if there is none."""
        async with self._transactions.reading() as session:
            query = _query().where(GenerationRow.session_id == session_id)
            row = (await session.execute(query)).one_or_none()
            return None if row is None else self._info(row, running_since)

    async def record_cancelled(self, generation: StoredGeneration, now: datetime) -> None:
        """Write into the audit log that a generation was cancelled."""
        workers = ", ".join(worker_id for worker_id, _, _ in generation.route)
        details = f"{generation.model} for key {generation.key_id} over {workers}"
        async with self._transactions.writing() as session:
            insert_audit(
                session,
                now,
                "generation_cancelled",
                generation.session_id,
                details,
                before={"state": "running"},
                after={"state": "cancelled"},
            )

    def _info(self, found: Row[GenerationRow, str | None], running_since: datetime) -> GenerationInfo:
        row, key_name = found
        is_running = row.finished_at is None and row.started_at >= running_since and row.continued_by is None
        return GenerationInfo(
            session_id=SessionId(row.session_id),
            key_id=KeyId(row.key_id),
            key_name=key_name or "",
            model=ModelName(row.model),
            revision=Revision(row.revision),
            hops=tuple(
                GenerationHop(
                    worker_id=WorkerId(name), hostname=self._hostname(WorkerId(name)), blocks=BlockRange(start, end)
                )
                for name, start, end in row.route
            ),
            n_prompt_tokens=row.n_prompt_tokens,
            max_tokens=row.max_tokens,
            state="running" if is_running else "finished",
            started_at=row.started_at.isoformat(),
            n_completion_tokens=row.n_completion_tokens,
            outcome=row.outcome,
            finished_at=None if row.finished_at is None else row.finished_at.isoformat(),
            continues=None if row.continues is None else SessionId(row.continues),
            continued_by=None if row.continued_by is None else SessionId(row.continued_by),
        )


def _query() -> Select[GenerationRow, str | None]:
    return select(GenerationRow, ApiKeyRow.name).join(
        ApiKeyRow, ApiKeyRow.key_id == GenerationRow.key_id, isouter=True
    )
