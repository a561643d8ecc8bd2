"""Sessions of the dashboard that were signed out of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dashboard_sign_outs",
        sa.Column("session_id", sa.String(32), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_dashboard_sign_outs")),
    )
    op.create_index(op.f("ix_dashboard_sign_outs_until"), "dashboard_sign_outs", ["until"])


def downgrade() -> None:
    op.drop_index(op.f("ix_dashboard_sign_outs_until"), "dashboard_sign_outs")
    op.drop_table("dashboard_sign_outs")
