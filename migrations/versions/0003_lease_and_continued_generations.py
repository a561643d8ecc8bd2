"""The lease of the coordinator that serves the database; which generation goes on from which."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    lease = op.create_table(
        "coordinator_lease",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("n_renewals", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_coordinator_lease"),
    )
    never = datetime.fromtimestamp(0, UTC)
    row = {"id": 1, "epoch": 0, "holder": "", "url": "", "n_renewals": 0, "expires_at": never}
    op.bulk_insert(lease, [row])
    with op.batch_alter_table("generations") as generations:
        generations.add_column(sa.Column("continues", sa.String(64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("generations") as generations:
        generations.drop_column("continues")
    op.drop_table("coordinator_lease")
