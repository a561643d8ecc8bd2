"""The tables, as mapped classes and nothing else. Times are UTC and know it, on SQLite too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
"""Constraints have names, so that later migrations can name them on both databases."""

RowId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up only a column that is exactly INTEGER."""


class UtcDateTime(TypeDecorator[datetime]):
    """A time zone aware datetime in UTC; SQLite, which has no time zones, stores it without."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone: it would be somebody's local time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """The time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of the mapped classes."""

    metadata = MetaData(naming_convention=NAMING)


class SettingRow(Base):
    """One fact about the whole cluster; `coordinator_id` fences the database against another coordinator."""

    __tablename__ = "settings"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class WorkerRow(Base):
    """A worker that has joined at some time. The epoch outlives the spans, so that it never falls."""

    __tablename__ = "workers"

    worker_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    hostname: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    device: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    assignment_reason: Mapped[str] = mapped_column(Text, default="")


class ModelRow(Base):
    """A model that is served; `id` keeps the order in which they were added."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    revision: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[bytes] = mapped_column(LargeBinary)
    n_replicas: Mapped[int] = mapped_column(Integer, server_default="1")
    """How many workers are to hold each block."""


class ModelFileRow(Base):
    """A file of a model. Several names may stand for the same bytes, and several models share a file."""

    __tablename__ = "model_files"

    model_id: Mapped[int] = mapped_column(RowId, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class AssignmentRow(Base):
    """A range of blocks that a worker is to hold."""

    __tablename__ = "assignments"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.worker_id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), index=True)
    revision: Mapped[str] = mapped_column(String(64))
    start: Mapped[int] = mapped_column(Integer)
    end: Mapped[int] = mapped_column(Integer)
    quantization: Mapped[str | None] = mapped_column(String(16))
    """What the weights are to be held in, if not as the worker holds weights otherwise."""


class ApiKeyRow(Base):
    """An API key without its secret."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(16))
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class GenerationRow(Base):
    """One generation: who asked, the route it was given, and (once its tail has told) what it used."""

    __tablename__ = "generations"
    __table_args__ = (Index("ix_generations_key_id_started_at", "key_id", "started_at"),)

    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.key_id"))
    model: Mapped[str] = mapped_column(String(64))
    revision: Mapped[str] = mapped_column(String(64))
    route: Mapped[list[list[Any]]] = mapped_column(JSON)
    """[[worker id, start, end], ...] from head to tail."""
    n_prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    max_tokens: Mapped[int] = mapped_column(BigInteger)
    n_completion_tokens: Mapped[int | None] = mapped_column(BigInteger)
    outcome: Mapped[str | None] = mapped_column(String(16))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    continues: Mapped[str | None] = mapped_column(String(64))
    """The session that failed and goes on by this one."""


class LeaseRow(Base):
    """Which coordinator the database is served by; one row. `coordinator.lease` has the rules.

    It is read and taken before the schema is brought up to date, so its columns stay as they are.
    """

    __tablename__ = "coordinator_lease"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(BigInteger)
    """Rises with every taking; whoever writes names the epoch that it took."""
    holder: Mapped[str] = mapped_column(String(128))
    """Empty: nobody's, the last holder stopped in order."""
    url: Mapped[str] = mapped_column(Text)
    n_renewals: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AuditRow(Base):
    """A line of the audit log; never changed."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(Text)
    details: Mapped[str] = mapped_column(Text)
