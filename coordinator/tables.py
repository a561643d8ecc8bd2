"""The tables, as mapped classes and nothing else. Times are UTC and know it, on SQLite too."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.table_base import Base, RowId, UtcDateTime


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
    starts_by: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Set while it is starting, when it enrolled and hasn't connected."""
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
    signature: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Its author's; None: it isn't signed."""
    pinned_ends: Mapped[bool] = mapped_column(Boolean, server_default="0")
    """Whether all its routes begin and end on workers whose trust is pinned."""


class AuthorRow(Base):
    """An author of models whom operators trust."""

    __tablename__ = "authors"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    """What the operator calls whoever holds the key."""
    added_at: Mapped[datetime] = mapped_column(UtcDateTime)
    added_by: Mapped[str] = mapped_column(String(64))
    """The operator's key."""


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
    old_secret_hash: Mapped[str | None] = mapped_column(String(64))
    """Of the secret before; None: there was none, or it was good for nothing any more at once."""
    old_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Until when that one is good."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    owner: Mapped[str] = mapped_column(String(64), server_default="")
    """Whose it is, as an operator says: what that owner's workers give may earn it priority. Empty: nobody's."""


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
    continued_by: Mapped[str | None] = mapped_column(String(64))
    """The latest session by which this one's generation goes on."""
    reservation_id: Mapped[int | None] = mapped_column(BigInteger)
    """What is held for it, of `reservations`; None where its key had no limits."""


class QuotaRow(Base):
    """Limits of one key, and what is used of its rates: `coordinator.policy.quota`. Whoever writes here locks it.

    A key without limits has none.
    """

    __tablename__ = "quotas"

    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.key_id", ondelete="CASCADE"), primary_key=True)
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)
    requests_used: Mapped[float] = mapped_column(Double)
    minute_used: Mapped[float] = mapped_column(Double)
    minute_entered: Mapped[float] = mapped_column(Double)
    day_used: Mapped[float] = mapped_column(Double)
    day_entered: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ReservationRow(Base):
    """What is held of a key's rates for one generation. Written by who holds the lock on the key's quota."""

    __tablename__ = "reservations"
    __table_args__ = (
        Index("ix_reservations_key_id_is_open", "key_id", "is_open"),
        {"sqlite_autoincrement": True},  # an id is never another's: a late report may still name it
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    """In the order of the reservations of a key."""
    key_id: Mapped[str] = mapped_column(ForeignKey("quotas.key_id", ondelete="CASCADE"))
    session_id: Mapped[str] = mapped_column(String(64))
    """The latest session of the generation."""
    n_reserved: Mapped[int] = mapped_column(BigInteger)
    n_used: Mapped[int] = mapped_column(BigInteger)
    n_sessions: Mapped[int] = mapped_column(Integer)
    minute_mark: Mapped[float] = mapped_column(Double)
    day_mark: Mapped[float] = mapped_column(Double)
    is_open: Mapped[bool] = mapped_column(Boolean)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    """While open: when it is taken to be over though nobody said so. Afterwards: when it may be forgotten."""


class UsageRow(Base):
    """What one key used on one day (UTC)."""

    __tablename__ = "usage_days"

    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.key_id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True, index=True)
    n_generations: Mapped[int] = mapped_column(BigInteger)
    n_prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    n_completion_tokens: Mapped[int] = mapped_column(BigInteger)


class ContributionRow(Base):
    """What one worker gave on one day (UTC), for the owner that it had then (empty: none)."""

    __tablename__ = "contributions"

    worker_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True, index=True)
    n_token_blocks: Mapped[int] = mapped_column(BigInteger)


class WorkerOwnerRow(Base):
    """Whose machine a worker is; it outlives the worker's being gone."""

    __tablename__ = "worker_owners"

    worker_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))


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


class TrustRow(Base):
    """What is kept of a worker's trust. It outlives the worker's leaving, and comes back with its id."""

    __tablename__ = "trust"

    worker_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    opinions: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """[{reporter, kind, mass, at_s}, ...]"""
    is_quarantined: Mapped[bool] = mapped_column(Boolean)
    quarantine_reason: Mapped[str] = mapped_column(Text)
    pinned: Mapped[float | None] = mapped_column(Double)
    banned_reason: Mapped[str | None] = mapped_column(Text)
    n_events: Mapped[int] = mapped_column(Integer)
    accused_ago: Mapped[list[int]] = mapped_column(JSON)
    """How many of its audits ago each accusation was."""


class TrustEventRow(Base):
    """One change of a worker's trust; the newest hundred or two of each worker."""

    __tablename__ = "trust_events"
    __table_args__ = (Index("ix_trust_events_worker_id_id", "worker_id", "id"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    worker_id: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(String(32))
    reporter: Mapped[str] = mapped_column(String(128))
    weight: Mapped[float] = mapped_column(Double)
    score_before: Mapped[float] = mapped_column(Double)
    score_after: Mapped[float] = mapped_column(Double)
    reason: Mapped[str] = mapped_column(Text)


class TrustSummaryRow(Base):
    """What a worker's older events of one kind came to."""

    __tablename__ = "trust_summaries"

    worker_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    n_events: Mapped[int] = mapped_column(BigInteger)
    weight: Mapped[float] = mapped_column(Double)
    first_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_at: Mapped[datetime] = mapped_column(UtcDateTime)
