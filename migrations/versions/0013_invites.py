"""Invites, and the workers that joined by them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "invites",
        sa.Column("invite_id", sa.String(16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("n_uses", sa.Integer(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("invite_id", name=op.f("pk_invites")),
    )
    op.create_index(op.f("ix_invites_created_at"), "invites", ["created_at"])
    op.create_table(
        "invite_uses",
        sa.Column("invite_id", sa.String(16), nullable=False),
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["invite_id"], ["invites.invite_id"], name=op.f("fk_invite_uses_invite_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("invite_id", "worker_id", name=op.f("pk_invite_uses")),
    )


def downgrade() -> None:
    op.drop_table("invite_uses")
    op.drop_index(op.f("ix_invites_created_at"), "invites")
    op.drop_table("invites")
