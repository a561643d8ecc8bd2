"""Whose a key is, so that it earns by the workers of its owner; by which session a generation goes on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("generations") as generations:
        generations.add_column(sa.Column("continued_by", sa.String(64), nullable=True))
    with op.batch_alter_table("api_keys") as api_keys:
        api_keys.add_column(sa.Column("owner", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("api_keys") as api_keys:
        api_keys.drop_column("owner")
    with op.batch_alter_table("generations") as generations:
        generations.drop_column("continued_by")
