"""Limits of keys: given, changed, shown with what is used of them, and what leaked given back.

One method is one transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec
from sqlalchemy import Connection, case, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from coordinator.persistence import insert_audit
from coordinator.policy.quota import at
from coordinator.policy.quota_views import rate_uses
from coordinator.quota_records import (
    GENERATIONS,
    QUOTAS,
    RESERVATIONS,
    account_of,
    limits_of,
    locked_quotas,
    save_quotas,
)
from coordinator.quota_rows import LONGEST_GENERATION, OPENS_WITHIN, Settling
from coordinator.stored_rows import after_key
from coordinator.tables import ApiKeyRow, QuotaRow, ReservationRow
from coordinator.transactions import Transactions
from protocol.error_forms import repeated
from protocol.errors import ConflictError, NotFoundError
from protocol.ids import KeyId, SessionId, WorkerId
from protocol.key_limits import UNLIMITED, KeyLimits, LimitsChange
from protocol.quota_rest import QuotaInfo

MAX_KEYS_A_SWEEP = 20
MAX_RESERVATIONS_A_SWEEP = 100
"""So that the lock on the key, and on SQLite everybody's, is held for a moment only."""


def new_quota(key_id: KeyId, limits: KeyLimits, now: datetime) -> QuotaRow:
    """The row of a key of which nothing was used yet."""
    return QuotaRow(
        key_id=key_id,
        limits=msgspec.to_builtins(limits),
        requests_used=0.0,
        minute_used=0.0,
        minute_entered=0.0,
        day_used=0.0,
        day_entered=0.0,
        updated_at=now,
    )


class QuotaBook:
    """The quotas behind typed methods. All of them raise `StorageError` if the database can't be used.

    `now` is by the clock that quotas go by, `SteadyClock`.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def change(self, key_id: KeyId, change: LimitsChange, now: datetime) -> KeyLimits:
        """Change a key's limits; what is used by `now`, as the old ones have it, stays used.

        Raises:
            NotFoundError: there is no such key.
            ConflictError: it is revoked.
        """

        def work(session: Session) -> KeyLimits:
            if _named(session, key_id).revoked_at is not None:
                raise ConflictError(f"the key {key_id} is revoked: make a new one (`coord key create`)")
            connection = session.connection()
            quota = locked_quotas(connection, [key_id]).get(key_id)
            before = UNLIMITED if quota is None else quota.limits
            limits = change.applied_to(before)
            if limits == before:
                return limits
            if quota is None:
                session.add(new_quota(key_id, limits, now))
            elif limits == UNLIMITED:
                connection.execute(delete(QUOTAS).where(QUOTAS.c.key_id == key_id))
            else:
                quota.account = at(quota.account, before, now.timestamp())
                save_quotas(connection, [quota])
                of_key = update(QUOTAS).where(QUOTAS.c.key_id == key_id)
                connection.execute(of_key.values(limits=msgspec.to_builtins(limits)))
            insert_audit(
                session,
                now,
                "key_limits_changed",
                key_id,
                f"{_words(before)} to {_words(limits)}",
                before={"limits": msgspec.to_builtins(before)},
                after={"limits": msgspec.to_builtins(limits)},
            )
            return limits

        return await self._transactions.write(work)

    async def quota(self, key_id: KeyId, now: datetime) -> QuotaInfo:
        """One key's limits and what is used of them; NotFoundError if there is no such key."""
        async with self._transactions.reading() as session:
            key = await session.run_sync(_named, key_id)
            n_running = (await _n_running(session, [key_id])).get(key_id, 0)
            return _info(key, await session.get(QuotaRow, key_id), n_running, now)

    async def quotas(self, now: datetime, *, after: KeyId | None, n_keys: int) -> tuple[QuotaInfo, ...]:
        """The same of keys that have limits, oldest first: of so many, those that come after one of them."""
        query = select(ApiKeyRow, QuotaRow).join(QuotaRow, QuotaRow.key_id == ApiKeyRow.key_id)
        query = after_key(query, after).order_by(ApiKeyRow.created_at, ApiKeyRow.key_id).limit(n_keys)
        async with self._transactions.reading() as session:
            found = (await session.execute(query)).all()
            n_running = await _n_running(session, [key.key_id for key, _ in found])
            return tuple(_info(key, row, n_running.get(key.key_id, 0), now) for key, row in found)

    async def held_at(self, heads: Collection[WorkerId]) -> dict[SessionId, WorkerId]:
        """Sessions for which something is held, of those that begin at these workers."""
        query = select(GENERATIONS.c.session_id, GENERATIONS.c.route)
        query = query.join(RESERVATIONS, RESERVATIONS.c.session_id == GENERATIONS.c.session_id)
        async with self._transactions.reading() as session:
            rows = await session.execute(query.where(RESERVATIONS.c.is_open.is_(True)))
            return {session_id: route[0][0] for session_id, route in rows if route[0][0] in heads}

    async def begin_anew(self, now: datetime) -> None:
        """After a start, hold nothing for longer than from now on, nor for less than workers take to come back.

        A clock that was ahead may have written when it ends. What heads said was opened while nobody listened they
        say again when they are back.
        """
        longest, shortest = now + LONGEST_GENERATION, now + OPENS_WITHIN

        def work(connection: Connection) -> None:
            ends = RESERVATIONS.c.expires_at
            connection.execute(update(RESERVATIONS).where(ends > longest).values(expires_at=longest))
            early = RESERVATIONS.c.is_open.is_(True), ends < shortest
            connection.execute(update(RESERVATIONS).where(*early).values(expires_at=shortest))

        await self._transactions.write_rows(work)

    async def expire(self, now: datetime) -> int:
        """Give back what leaked, as much as one transaction should; how many reservations that were.

        First the keys that something open keeps waiting, then those that wait longest.
        """
        due = select(ReservationRow.key_id).where(ReservationRow.expires_at <= now)
        async with self._transactions.reading() as session:
            if await session.scalar(due.limit(1)) is None:
                return 0
        return await self._transactions.write_rows(lambda connection: _expired(connection, now))


def _expired(connection: Connection, now: datetime) -> int:
    open_first = func.min(case((ReservationRow.is_open.is_(True), 0), else_=1))
    due = select(ReservationRow.key_id).where(ReservationRow.expires_at <= now)
    longest_first = due.group_by(ReservationRow.key_id).order_by(
        open_first, func.min(ReservationRow.expires_at), ReservationRow.key_id
    )
    keys = connection.scalars(longest_first.limit(MAX_KEYS_A_SWEEP)).all()
    settling = Settling.of_time(connection, keys, now, MAX_RESERVATIONS_A_SWEEP)
    n_expired = settling.expire(now)
    settling.write(connection)
    return n_expired


def _named(session: Session, key_id: KeyId) -> ApiKeyRow:
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFoundError(f"there is no key {repeated(key_id)}; `coord key list` shows them")
    return row


async def _n_running(session: AsyncSession, key_ids: Collection[str]) -> dict[str, int]:
    """By key, as far as any runs."""
    query = select(ReservationRow.key_id, func.count()).where(
        ReservationRow.is_open.is_(True), ReservationRow.key_id.in_(key_ids)
    )
    found = await session.execute(query.group_by(ReservationRow.key_id))
    return {row[0]: row[1] for row in found}


def _info(key: ApiKeyRow, row: QuotaRow | None, n_running: int, now: datetime) -> QuotaInfo:
    limits, account = UNLIMITED, None
    if row is not None:
        limits = limits_of(row)
        account = account_of(row)
    return QuotaInfo(
        key_id=KeyId(key.key_id),
        name=key.name,
        limits=limits,
        rates=() if account is None else rate_uses(account, limits, now.timestamp()),
        n_running=n_running,
        revoked_at=None if key.revoked_at is None else key.revoked_at.isoformat(),
    )


def _words(limits: KeyLimits) -> str:
    return msgspec.json.encode(limits).decode()
