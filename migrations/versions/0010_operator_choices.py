"""What operators have fixed by hand: settings and assignments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SETTING_PREFIX = "policy."


def upgrade() -> None:
    op.create_table(
        "pins",
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("end", sa.Integer, nullable=False),
        sa.Column("by", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("takes_from", sa.String(64), nullable=True),
        sa.Column("taken_start", sa.Integer, nullable=True),
        sa.Column("taken_end", sa.Integer, nullable=True),
        sa.Column("is_forced", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="pk_pins"),
    )


def downgrade() -> None:
    op.drop_table("pins")
    # an older coordinator goes by what it is given at its start
    settings = sa.table("settings", sa.column("key", sa.String))
    op.execute(settings.delete().where(settings.c.key.startswith(SETTING_PREFIX)))
