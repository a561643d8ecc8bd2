"""Tables of what was done: the audit log, requests that may come again, sessions that were signed out of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.table_base import Base, RowId, UtcDateTime


class AuditRow(Base):
    """A line of the audit log; the database itself refuses to change or delete one."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(Text)
    details: Mapped[str] = mapped_column(Text)
    who: Mapped[str] = mapped_column(String(128), server_default="")
    """Who did it (`coordinator.acting`); empty in lines that are older than this column."""
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class AdminRequestRow(Base):
    """A request with an Idempotency-Key: `coordinator.admin_requests`."""

    __tablename__ = "admin_requests"

    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    answer: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Encrypted; None while it is being carried out."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class DashboardSignOutRow(Base):
    """A session of the dashboard that was signed out of: `coordinator.dashboard_sessions`."""

    __tablename__ = "dashboard_sign_outs"

    session_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    until: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    """When its last cookie is good no longer, and this row no longer needed."""
