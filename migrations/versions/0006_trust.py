"""How far each worker is trusted, and how that came about."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "trust",
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("opinions", sa.JSON, nullable=False),
        sa.Column("is_quarantined", sa.Boolean, nullable=False),
        sa.Column("quarantine_reason", sa.Text, nullable=False),
        sa.Column("pinned", sa.Double, nullable=True),
        sa.Column("banned_reason", sa.Text, nullable=True),
        sa.Column("n_events", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="pk_trust"),
    )
    op.create_table(
        "trust_events",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("reporter", sa.String(128), nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("score_before", sa.Double, nullable=False),
        sa.Column("score_after", sa.Double, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_trust_events"),
    )
    op.create_index("ix_trust_events_worker_id_id", "trust_events", ["worker_id", "id"])
    op.create_table(
        "trust_summaries",
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("n_events", sa.BigInteger, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("first_at", UTC_TIME, nullable=False),
        sa.Column("last_at", UTC_TIME, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "kind", name="pk_trust_summaries"),
    )


def downgrade() -> None:
    for table in ("trust_summaries", "trust_events", "trust"):
        op.drop_table(table)
