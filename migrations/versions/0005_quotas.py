"""Limits of API keys, what is held and used of them, usage by day, and what workers contributed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("generations") as generations:
        generations.add_column(sa.Column("reservation_id", sa.BigInteger, nullable=True))
    _create_quotas()
    _create_reservations()
    _create_ledgers()


def downgrade() -> None:
    for table in ("worker_owners", "contributions", "usage_days", "reservations", "quotas"):
        op.drop_table(table)
    with op.batch_alter_table("generations") as generations:
        generations.drop_column("reservation_id")


def _create_quotas() -> None:
    rates = ("requests_used", "minute_used", "minute_entered", "day_used", "day_entered")
    op.create_table(
        "quotas",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        *(sa.Column(name, sa.Double, nullable=False) for name in rates),
        sa.Column("updated_at", UTC_TIME, nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_quotas"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.key_id"], name="fk_quotas_key_id", ondelete="CASCADE"),
    )


def _create_reservations() -> None:
    op.create_table(
        "reservations",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("n_reserved", sa.BigInteger, nullable=False),
        sa.Column("n_used", sa.BigInteger, nullable=False),
        sa.Column("n_sessions", sa.Integer, nullable=False),
        sa.Column("minute_mark", sa.Double, nullable=False),
        sa.Column("day_mark", sa.Double, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("expires_at", UTC_TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reservations"),
        sa.ForeignKeyConstraint(["key_id"], ["quotas.key_id"], name="fk_reservations_key_id", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_reservations_key_id_is_open", "reservations", ["key_id", "is_open"])
    op.create_index("ix_reservations_expires_at", "reservations", ["expires_at"])


def _create_ledgers() -> None:
    op.create_table(
        "usage_days",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("n_generations", sa.BigInteger, nullable=False),
        sa.Column("n_prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("n_completion_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "day", name="pk_usage_days"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.key_id"], name="fk_usage_days_key_id", ondelete="CASCADE"),
    )
    op.create_index("ix_usage_days_day", "usage_days", ["day"])
    op.create_table(
        "contributions",
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("n_token_blocks", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "owner", "day", name="pk_contributions"),
    )
    op.create_index("ix_contributions_day", "contributions", ["day"])
    op.create_table(
        "worker_owners",
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="pk_worker_owners"),
    )
