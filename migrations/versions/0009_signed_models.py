"""Who signed a model, whose signatures count, and which models' routes begin and end on pinned workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "authors",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("added_at", UTC_TIME, nullable=False),
        sa.Column("added_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_authors"),
    )
    with op.batch_alter_table("models") as batch:
        batch.add_column(sa.Column("signature", sa.LargeBinary, nullable=True))
        batch.add_column(sa.Column("pinned_ends", sa.Boolean, nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("models") as batch:
        batch.drop_column("pinned_ends")
        batch.drop_column("signature")
    op.drop_table("authors")
