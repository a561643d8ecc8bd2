"""The tables of invites, as mapped classes and nothing else: what was handed out, and who came by it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.table_base import Base, UtcDateTime


class InviteRow(Base):
    """An invite. Its key isn't here: it is derived from the CA's (`coordinator.authority`)."""

    __tablename__ = "invites"

    invite_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    created_by: Mapped[str] = mapped_column(String(64))
    """The operator's key."""
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    n_uses: Mapped[int] = mapped_column(Integer)
    """So many workers may join by it."""
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class InviteUseRow(Base):
    """A worker that joined by an invite: it may come again by the same."""

    __tablename__ = "invite_uses"

    invite_id: Mapped[str] = mapped_column(ForeignKey("invites.invite_id", ondelete="CASCADE"), primary_key=True)
    worker_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    used_at: Mapped[datetime] = mapped_column(UtcDateTime)
