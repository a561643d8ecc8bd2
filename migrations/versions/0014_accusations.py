"""What audits accused workers of without proof, which a restart forgot."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("trust") as trust:
        trust.add_column(sa.Column("accused_ago", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    with op.batch_alter_table("trust") as trust:
        trust.drop_column("accused_ago")
