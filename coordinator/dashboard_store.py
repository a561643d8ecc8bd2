"""What the dashboard keeps in the database: lines of the audit log, and sessions that were signed out of."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select

from coordinator.log_tables import DashboardSignOutRow
from coordinator.persistence import insert_audit
from coordinator.transactions import Transactions
from protocol.ids import KeyId


class DashboardStore:
    """All of its methods raise `StorageError` if the database can't be used."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def signed_out(self, now: datetime) -> dict[str, float]:
        """Sessions that were signed out of and would be good still, and until when (seconds since 1970, UTC)."""
        query = select(DashboardSignOutRow).where(DashboardSignOutRow.until > now)
        async with self._transactions.reading() as session:
            return {row.session_id: row.until.timestamp() for row in await session.scalars(query)}

    async def record_sign_in(self, key_id: KeyId, address: str, now: datetime) -> None:
        """Write into the audit log that somebody signed in with a key."""
        async with self._transactions.writing() as session:
            insert_audit(session, now, "dashboard_signed_in", key_id, f"from {address}")

    async def record_sign_out(self, session_id: str, key_id: KeyId, until: datetime, now: datetime) -> None:
        """Keep that a session was signed out of, as long as its cookies would be good; again changes nothing."""
        async with self._transactions.writing() as session:
            await session.execute(delete(DashboardSignOutRow).where(DashboardSignOutRow.until <= now))
            if await session.get(DashboardSignOutRow, session_id) is None:
                session.add(DashboardSignOutRow(session_id=session_id, until=until))
                insert_audit(session, now, "dashboard_signed_out", key_id, "")
