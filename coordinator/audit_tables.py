"""The tables of audits, as mapped classes and nothing else: what was found, and answers for later ones."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Double, Integer, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.table_base import Base, RowId, UtcDateTime


class AuditFindingRow(Base):
    """One audit of a worker; the newest thousand that went well, and as many others."""

    __tablename__ = "audits"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    worker_id: Mapped[str] = mapped_column(String(64))
    partner: Mapped[str] = mapped_column(String(64))
    """A worker, `recorded`, or empty: there was nobody."""
    referee: Mapped[str] = mapped_column(String(64))
    """Likewise: who decided between the two; empty if nobody did."""
    model: Mapped[str] = mapped_column(String(64))
    block_start: Mapped[int] = mapped_column(Integer)
    block_end: Mapped[int] = mapped_column(Integer)
    outcome: Mapped[str] = mapped_column(String(16))
    partner_outcome: Mapped[str] = mapped_column(String(16))
    difference: Mapped[float | None] = mapped_column(Double)
    allowed: Mapped[float | None] = mapped_column(Double)
    reason: Mapped[str] = mapped_column(Text)


class AuditAnswerRow(Base):
    """What a trusted worker once answered; the newest few of a range of blocks and what it was held in."""

    __tablename__ = "audit_answers"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    revision: Mapped[str] = mapped_column(String(64), index=True)
    block_start: Mapped[int] = mapped_column(Integer)
    block_end: Mapped[int] = mapped_column(Integer)
    weights: Mapped[str] = mapped_column(String(16))
    kv: Mapped[str | None] = mapped_column(String(16))
    seed: Mapped[str] = mapped_column(String(64))
    worker_id: Mapped[str] = mapped_column(String(64))
    projection: Mapped[bytes] = mapped_column(LargeBinary)
    """float64, little-endian, position by position."""
