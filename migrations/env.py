"""Alembic's entry: on the connection that `coordinator.database` hands over, or (by hand) on one of its own."""

from __future__ import annotations

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, make_url

from coordinator import audit_tables as audit_tables
from coordinator import invite_tables as invite_tables
from coordinator import log_tables as log_tables
from coordinator import operator_tables as operator_tables
from coordinator.config import checked_database_url
from coordinator.database import check_references, create_engine
from coordinator.tables import SettingRow


def run(connection: Connection) -> None:
    """Migrate on `connection`, in one transaction."""
    context.configure(
        connection=connection, target_metadata=SettingRow.metadata, render_as_batch=True, transactional_ddl=True
    )
    with context.begin_transaction():
        context.run_migrations()
        check_references(connection)


async def run_by_hand() -> None:
    """Migrate the database that BRIGADE_DATABASE_URL (else alembic.ini) names."""
    named = os.environ.get("BRIGADE_DATABASE_URL") or context.config.get_main_option("sqlalchemy.url") or ""
    engine = create_engine(make_url(checked_database_url(named)), is_pooled=False, migrates=True)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


if "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    asyncio.run(run_by_hand())
