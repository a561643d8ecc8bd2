"""What is kept of requests that came with an Idempotency-Key, so that none is carried out twice.

The answer is kept encrypted: it may hold the secret of a new API key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.log_tables import AdminRequestRow
from coordinator.transactions import Transactions
from protocol.errors import OverloadedError
from protocol.ids import KeyId

KEPT = timedelta(hours=24)
MAX_KEPT = 10_000
"""Of one API key."""
FULL_RETRY_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeatable:
    """A request that may come again."""

    key_id: KeyId
    """The API key of who asks."""
    name_hash: str
    """SHA-256 of the Idempotency-Key, hex."""
    request_hash: str
    """SHA-256 of all that was asked, hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAnswer:
    """What the first of them was answered; None: it was begun, and nobody knows how it ended."""

    request_hash: str
    sealed: bytes | None


class AdminRequests:
    """The requests behind typed methods. All of them raise `StorageError` if the database can't be used."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def begin(self, request: Repeatable, now: datetime) -> FirstAnswer | None:
        """Keep that it is being carried out; what is known of it if it was before, within `KEPT`.

        Raises:
            OverloadedError: `MAX_KEPT` of this key are kept already.
        """
        async with self._transactions.writing() as session:
            await session.execute(delete(AdminRequestRow).where(AdminRequestRow.created_at <= now - KEPT))
            row = await _row(session, request)
            if row is not None:
                return FirstAnswer(request_hash=row.request_hash, sealed=row.answer)
            of_key = select(func.count()).where(AdminRequestRow.key_id == request.key_id)
            if (await session.scalar(of_key) or 0) >= MAX_KEPT:
                raise OverloadedError(
                    f"{MAX_KEPT} requests of this API key with an Idempotency-Key are kept already, each for "
                    f"{KEPT.total_seconds() / 3600:.0f} hours: send this one without, or later",
                    retry_after_s=FULL_RETRY_S,
                )
            session.add(
                AdminRequestRow(
                    key_id=request.key_id,
                    name_hash=request.name_hash,
                    request_hash=request.request_hash,
                    answer=None,
                    created_at=now,
                )
            )
            return None

    async def finish(self, request: Repeatable, sealed: bytes) -> None:
        """Keep what it was answered."""
        async with self._transactions.writing() as session:
            row = await _row(session, request)
            if row is not None:
                row.answer = sealed

    async def forget(self, request: Repeatable) -> None:
        """It came to nothing: the same may be asked again."""
        async with self._transactions.writing() as session:
            row = await _row(session, request)
            if row is not None:
                await session.delete(row)


async def _row(session: AsyncSession, request: Repeatable) -> AdminRequestRow | None:
    return await session.get(AdminRequestRow, (request.key_id, request.name_hash))
