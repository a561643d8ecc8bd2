"""What the admin API remembers of requests; who did what in the audit log, which nobody changes; rotated keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

UTC_TIME = sa.DateTime(timezone=True)
REFUSAL = "the audit log is only appended to"


def upgrade() -> None:
    op.create_table(
        "admin_requests",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("name_hash", sa.String(64), nullable=False),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=True),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "name_hash", name="pk_admin_requests"),
    )
    op.create_index("ix_admin_requests_created_at", "admin_requests", ["created_at"])
    with op.batch_alter_table("api_keys") as api_keys:
        api_keys.add_column(sa.Column("old_secret_hash", sa.String(64), nullable=True))
        api_keys.add_column(sa.Column("old_until", UTC_TIME, nullable=True))
    with op.batch_alter_table("audit_log") as audit_log:
        audit_log.add_column(sa.Column("who", sa.String(128), nullable=False, server_default=""))
        audit_log.add_column(sa.Column("before", sa.JSON, nullable=True))
        audit_log.add_column(sa.Column("after", sa.JSON, nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_log_no_{act.lower()} BEFORE {act} ON audit_log "
                f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_log_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()"
    )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for act in ("update", "delete"):
            op.execute(f"DROP TRIGGER audit_log_no_{act}")
    else:
        op.execute("DROP TRIGGER audit_log_refuse ON audit_log")
        op.execute("DROP FUNCTION audit_log_refuse()")
    with op.batch_alter_table("audit_log") as audit_log:
        for name in ("after", "before", "who"):
            audit_log.drop_column(name)
    with op.batch_alter_table("api_keys") as api_keys:
        for name in ("old_until", "old_secret_hash"):
            api_keys.drop_column(name)
    op.drop_table("admin_requests")
