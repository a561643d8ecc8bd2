"""The lease on the database: one coordinator at a time, by an epoch that every transaction checks that writes.

The epoch is what keeps two from writing, whatever the clocks do. Time only says when somebody who is silent may be
replaced: it is the database's, and where that stepped, nobody is replaced who was seen to renew.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.fence import LEASE_ID
from coordinator.tables import LeaseRow
from coordinator.transactions import Transactions

LEASE_S = 15.0
NOBODY = ""

_NOW = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The lease as it was read."""

    epoch: int
    holder: str
    """Of `holder_of`; empty: nobody's."""
    url: str
    n_renewals: int
    expires_at: datetime
    expires_in_s: float
    """By the database's clock."""

    @property
    def is_running(self) -> bool:
        """Whether it is somebody's for some time yet; longer than a lease lasts, only a clock that stepped says."""
        return self.holder != NOBODY and 0.0 < self.expires_in_s <= LEASE_S

    def is_same(self, other: Lease) -> bool:
        """Whether nobody has taken or renewed it in between."""
        return (self.epoch, self.holder, self.n_renewals) == (other.epoch, other.holder, other.n_renewals)


class LeaseTable:
    """The one row, each method a transaction."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    @property
    def lost(self) -> asyncio.Event:
        """Set once a transaction found that another coordinator has taken it."""
        return self._transactions.fence.lost

    @property
    def is_ours(self) -> bool:
        """Whether we have taken it; it may be lost by now."""
        return self._transactions.fence.epoch is not None

    async def read(self) -> Lease:
        """The lease as it is; nobody's in a new database."""
        async with self._transactions.reading() as session:
            return await self._read(session)

    async def take(self, seen: Lease, holder: str, url: str) -> bool:
        """Take it if it is still as `seen`, and write under its new epoch from now on."""
        async with self._transactions.writing(is_fenced=False) as session:
            row = await self._locked_row(session)
            if not (await self._read(session)).is_same(seen):
                return False
            row.epoch += 1
            row.holder = holder
            row.url = url
            row.n_renewals = 0
            row.expires_at = await self._expiry(session)
            epoch = row.epoch
        self._transactions.fence.epoch = epoch
        return True

    async def renew(self, url: str) -> None:
        """Have it for `LEASE_S` more.

        Raises:
            LeaseError: another coordinator has taken it.
            StorageError: the database can't be used; nobody else can take the lease there either.
        """
        async with self._transactions.writing(is_fenced=False) as session:
            # The row is locked for writing before the fence shares it: two transactions that first shared it
            # and then both wanted to write it would wait for each other for ever.
            row = await self._locked_row(session)
            await self._transactions.fence.check(session)
            row.url = url
            row.n_renewals += 1
            row.expires_at = await self._expiry(session)

    async def release(self) -> None:
        """Let anybody have it at once.

        Raises:
            LeaseError, StorageError: as `renew`.
        """
        async with self._transactions.writing(is_fenced=False) as session:
            row = await self._locked_row(session)
            await self._transactions.fence.check(session)
            row.holder = NOBODY

    async def _locked_row(self, session: AsyncSession) -> LeaseRow:
        return await session.get_one(LeaseRow, LEASE_ID, with_for_update=True)

    async def _read(self, session: AsyncSession) -> Lease:
        row = await session.get_one(LeaseRow, LEASE_ID)
        now = await self._now(session)
        return Lease(
            epoch=row.epoch,
            holder=row.holder,
            url=row.url,
            n_renewals=row.n_renewals,
            expires_at=row.expires_at,
            expires_in_s=(row.expires_at - now).total_seconds(),
        )

    async def _expiry(self, session: AsyncSession) -> datetime:
        return await self._now(session) + timedelta(seconds=LEASE_S)

    async def _now(self, session: AsyncSession) -> datetime:
        seconds = await session.scalar(text(_NOW[self._transactions.database]))
        assert seconds is not None
        return datetime.fromtimestamp(float(seconds), UTC)
