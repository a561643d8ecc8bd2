"""Under which epoch of the lease this program writes: whoever has lost the lease writes nothing any more."""

from __future__ import annotations

import asyncio
import sqlite3

import asyncpg
from sqlalchemy import Connection, select
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.tables import LeaseRow
from protocol.coordinator_errors import LeaseError

LEASE_ID = 1
"""Of the table's only row."""
# Shared with our other writers; a coordinator that takes the lease has to wait for all of them.
_EPOCH = select(LeaseRow.epoch).where(LeaseRow.id == LEASE_ID).with_for_update(read=True)
_EPOCH_PLAINLY = f"SELECT epoch FROM coordinator_lease WHERE id = {LEASE_ID:d}"  # noqa: S608 - a number of ours
_HELD = "SELECT 1 FROM coordinator_lease WHERE id = {:d} AND epoch = {:d} FOR SHARE"


class Fence:
    """Which epoch of the lease this program writes under; None: it needs no lease (a tool, a test)."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.lost = asyncio.Event()
        """Set once a transaction found the lease taken by another coordinator; then nothing is written again."""

    async def check(self, session: AsyncSession) -> None:
        """Hold the lease as it is until the transaction ends.

        Raises:
            LeaseError: another coordinator has taken it.
        """
        await session.run_sync(lambda blocking: self.check_now(blocking.connection()))

    def check_now(self, connection: Connection) -> None:
        """As `check`, where waiting is no matter."""
        if self.epoch is not None and connection.scalar(_EPOCH) != self.epoch:
            raise _taken_over()

    def check_plainly(self, connection: sqlite3.Connection) -> None:
        """As `check_now`, on SQLite's own connection, in a transaction that has the write lock already."""
        if self.epoch is not None and connection.execute(_EPOCH_PLAINLY).fetchone() != (self.epoch,):
            raise _taken_over()

    async def begin(self, connection: asyncpg.Connection, locks: str) -> None:
        """Begin a transaction with the statement `locks`, and `check`: in one round trip, with no parameters."""
        if self.epoch is None:
            await connection.execute(f"BEGIN; {locks}")
        elif await connection.execute(f"BEGIN; {locks}; {_HELD.format(LEASE_ID, self.epoch)}") != "SELECT 1":
            raise _taken_over()


def _taken_over() -> LeaseError:
    return LeaseError(
        "another coordinator has taken this database over, so this one has stopped writing to it and ends; "
        "`coord status` with the other's URL shows the cluster"
    )
