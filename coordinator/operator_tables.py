"""The table of what operators have fixed by hand: pins of blocks."""

from __future__ import annotations

from sqlalchemy import Boolean, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.table_base import Base


class PinRow(Base):
    """What an operator has a worker hold. It outlives the worker's leaving, and comes back with its id."""

    __tablename__ = "pins"

    worker_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(64))
    start: Mapped[int] = mapped_column(Integer)
    end: Mapped[int] = mapped_column(Integer)
    by: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text)
    takes_from: Mapped[str | None] = mapped_column(String(64))
    taken_start: Mapped[int | None] = mapped_column(Integer)
    taken_end: Mapped[int | None] = mapped_column(Integer)
    is_forced: Mapped[bool] = mapped_column(Boolean)
