"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UTC_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_cluster_tables()
    _create_key_tables()


def _create_cluster_tables() -> None:
    op.create_table(
        "settings",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_settings"),
    )
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("hostname", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("device", sa.JSON, nullable=True),
        sa.Column("seen_at", UTC_TIME, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("assignment_reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="pk_workers"),
    )
    op.create_table(
        "models",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("name", name="uq_models_name"),
    )
    op.create_table(
        "model_files",
        sa.Column("model_id", ROW_ID, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "name", name="pk_model_files"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_model_files_model_id", ondelete="CASCADE"),
    )
    op.create_index("ix_model_files_sha256", "model_files", ["sha256"])
    op.create_table(
        "assignments",
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("end", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "position", name="pk_assignments"),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["workers.worker_id"], name="fk_assignments_worker_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_assignments_model"),
    )
    op.create_index("ix_assignments_model", "assignments", ["model"])


def _create_key_tables() -> None:
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.Column("revoked_at", UTC_TIME, nullable=True),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
    )
    op.create_table(
        "generations",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("route", sa.JSON, nullable=False),
        sa.Column("n_prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("max_tokens", sa.BigInteger, nullable=False),
        sa.Column("n_completion_tokens", sa.BigInteger, nullable=True),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("started_at", UTC_TIME, nullable=False),
        sa.Column("finished_at", UTC_TIME, nullable=True),
        sa.PrimaryKeyConstraint("session_id", name="pk_generations"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.key_id"], name="fk_generations_key_id"),
    )
    op.create_index("ix_generations_key_id_started_at", "generations", ["key_id", "started_at"])
    op.create_table(
        "audit_log",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("at", UTC_TIME, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"])


def downgrade() -> None:
    for table in (
        "audit_log",
        "generations",
        "api_keys",
        "assignments",
        "model_files",
        "models",
        "workers",
        "settings",
    ):
        op.drop_table(table)
