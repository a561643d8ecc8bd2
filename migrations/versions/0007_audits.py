"""What audits of workers have found, and answers that later ones are compared with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "audits",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("partner", sa.String(64), nullable=False),
        sa.Column("referee", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("block_start", sa.Integer, nullable=False),
        sa.Column("block_end", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("partner_outcome", sa.String(16), nullable=False),
        sa.Column("difference", sa.Double, nullable=True),
        sa.Column("allowed", sa.Double, nullable=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audits"),
    )
    op.create_table(
        "audit_answers",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("block_start", sa.Integer, nullable=False),
        sa.Column("block_end", sa.Integer, nullable=False),
        sa.Column("weights", sa.String(16), nullable=False),
        sa.Column("kv", sa.String(16), nullable=True),
        sa.Column("seed", sa.String(64), nullable=False),
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("projection", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_answers"),
    )
    op.create_index("ix_audit_answers_revision", "audit_answers", ["revision"])


def downgrade() -> None:
    for table in ("audit_answers", "audits"):
        op.drop_table(table)
