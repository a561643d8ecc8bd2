"""Blocks that are to be held in fewer bits than their worker would hold them in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("assignments") as assignments:
        assignments.add_column(sa.Column("quantization", sa.String(16), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("assignments") as assignments:
        assignments.drop_column("quantization")
