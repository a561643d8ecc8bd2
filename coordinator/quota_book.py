"""Limits of keys: given, changed, shown with what is used of them, and what leaked given back.

One method is one transaction.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.persistence import insert_audit
from coordinator.policy.quota import at, rate_uses
from coordinator.quota_rows import Settling, account_of, limits_of, locked_quota
from coordinator.tables import ApiKeyRow, QuotaRow, ReservationRow
from coordinator.transactions import Transactions
from protocol.errors import NotFoundError, repeated
from protocol.ids import KeyId
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
        """
        async with self._transactions.writing() as session:
            await _named(session, key_id)
            quota = await locked_quota(session, key_id)
            before = UNLIMITED if quota is None else quota.limits
            limits = change.applied_to(before)
            if limits == before:
                return limits
            if quota is None:
                session.add(new_quota(key_id, limits, now))
            elif limits == UNLIMITED:
                await session.delete(quota.row)
            else:
                quota.write(at(quota.account, before, now.timestamp()))
                quota.row.limits = msgspec.to_builtins(limits)
            insert_audit(session, now, "key_limits_changed", key_id, f"{_words(before)} to {_words(limits)}")
            return limits

    async def quota(self, key_id: KeyId, now: datetime) -> QuotaInfo:
        """One key's limits and what is used of them; NotFoundError if there is no such key."""
        async with self._transactions.reading() as session:
            key = await _named(session, key_id)
            n_running = (await _n_running(session, key_id)).get(key_id, 0)
            return _info(key, await session.get(QuotaRow, key_id), n_running, now)

    async def quotas(self, now: datetime) -> tuple[QuotaInfo, ...]:
        """The same of every key that has limits, oldest first."""
        async with self._transactions.reading() as session:
            query = (
                select(ApiKeyRow, QuotaRow)
                .join(QuotaRow, QuotaRow.key_id == ApiKeyRow.key_id)
                .order_by(ApiKeyRow.created_at, ApiKeyRow.key_id)
            )
            n_running = await _n_running(session)
            return tuple(
                _info(key, row, n_running.get(key.key_id, 0), now) for key, row in await session.execute(query)
            )

    async def expire(self, now: datetime) -> int:
        """Give back what leaked, as much as one transaction should; how many reservations that were.

        First the keys that something open keeps waiting, then those that wait longest.
        """
        due = select(ReservationRow.key_id).where(ReservationRow.expires_at <= now)
        async with self._transactions.reading() as session:
            if await session.scalar(due.limit(1)) is None:
                return 0
        async with self._transactions.writing() as session:
            open_first = func.min(case((ReservationRow.is_open.is_(True), 0), else_=1))
            longest_first = due.group_by(ReservationRow.key_id).order_by(
                open_first, func.min(ReservationRow.expires_at), ReservationRow.key_id
            )
            keys = (await session.scalars(longest_first.limit(MAX_KEYS_A_SWEEP))).all()
            settling = await Settling.of_time(session, keys, now, MAX_RESERVATIONS_A_SWEEP)
            n_expired = await settling.expire(now)
            await settling.write()
            return n_expired


async def _named(session: AsyncSession, key_id: KeyId) -> ApiKeyRow:
    row = await session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFoundError(f"there is no key {repeated(key_id)}; `coord key list` shows them")
    return row


async def _n_running(session: AsyncSession, key_id: KeyId | None = None) -> dict[str, int]:
    """By key, as far as any runs."""
    query = select(ReservationRow.key_id, func.count()).where(ReservationRow.is_open.is_(True))
    if key_id is not None:
        query = query.where(ReservationRow.key_id == key_id)
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
    )


def _words(limits: KeyLimits) -> str:
    return msgspec.json.encode(limits).decode()
