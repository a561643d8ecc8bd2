"""The audit log as operators read it: newest first, by who, what, on what and when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select

from coordinator.log_tables import AuditRow
from coordinator.transactions import Transactions
from protocol.admin_rest import AuditEntry

_FIRST = datetime(1, 1, 2, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which lines; None: whatever it is."""

    who: str | None = None
    action: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class AuditLog:
    """The log behind a typed method."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def entries(
        self, wanted: AuditFilter, *, before_id: int | None, n_entries: int
    ) -> tuple[AuditEntry, ...]:
        """The newest lines, newest first; of those before a line if it is named.

        Raises:
            StorageError: the database can't be used.
        """
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(n_entries)
        if before_id is not None:
            query = query.where(AuditRow.id < before_id)
        for column, value in (
            (AuditRow.who, wanted.who),
            (AuditRow.action, wanted.action),
            (AuditRow.subject, wanted.subject),
        ):
            if value is not None:
                query = query.where(column == value)
        if wanted.since is not None:
            query = query.where(AuditRow.at >= max(wanted.since, _FIRST))
        if wanted.until is not None:
            query = query.where(AuditRow.at < max(wanted.until, _FIRST))
        async with self._transactions.reading() as session:
            return tuple(_entry(row) for row in await session.scalars(query))

    async def actions(self) -> tuple[str, ...]:
        """Kinds of lines that there are, by name; StorageError as above."""
        async with self._transactions.reading() as session:
            return tuple(await session.scalars(select(AuditRow.action).distinct().order_by(AuditRow.action)))


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        entry_id=row.id,
        at=row.at.isoformat(),
        who=row.who,
        action=row.action,
        subject=row.subject,
        details=row.details,
        before=row.before,
        after=row.after,
    )
