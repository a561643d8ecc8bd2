"""All rows of a database, out and into an empty one, of either kind. Knows the tables by what the database says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Connection, MetaData, Table, func, insert, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.database import READ_ONLY, create_engine, database_errors, migrate
from coordinator.tables import LeaseRow
from protocol.errors import ConfigError, ConflictError

LEFT_OUT = ("alembic_version", LeaseRow.__tablename__)
"""The schema's revision is named in the backup, and the lease is of the program that ran."""

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


async def all_rows(url: str) -> tuple[str, Rows]:
    """The schema's revision, and the rows of each table as they are at one moment; nobody is held up by it.

    Raises:
        ConfigError: there is no such database.
        StorageError: it can't be used.
    """
    engine = create_engine(make_url(url), is_pooled=False)
    if not _is_there(engine.url):
        raise ConfigError(
            f"there is no database {engine.url.database}: name the one that the coordinator uses (--database-url)"
        )
    try:
        with database_errors(engine.url):
            options: dict[str, Any] = dict(READ_ONLY)
            if engine.dialect.name == "postgresql":
                options["isolation_level"] = "REPEATABLE READ"
            async with engine.connect() as plain:
                connection = await plain.execution_options(**options)
                async with connection.begin():
                    revision = await connection.run_sync(_revision)
                    tables = await connection.run_sync(_tables)
                    return revision, {table.name: await _rows(connection, table) for table in tables}
    finally:
        await engine.dispose()


async def fill(url: str, revision: str, rows: Rows) -> None:
    """Put rows into a database that has none, which gets the schema of `revision` and then the newest.

    Raises:
        ConflictError: it has a coordinator's data already; nothing was changed.
        StorageError: the database can't be used.
    """
    engine = create_engine(make_url(url), is_pooled=False)
    try:
        with database_errors(engine.url):
            if _is_there(engine.url):  # before its schema is touched: it may be in use by another version
                async with engine.connect() as connection:
                    await _check_empty(connection)
            await asyncio.to_thread(migrate, url, revision)
            async with engine.begin() as connection:
                await _check_empty(connection)
                for table in await connection.run_sync(_tables):
                    await _fill_table(connection, table, rows.get(table.name, ()))
    finally:
        await engine.dispose()
    await asyncio.to_thread(migrate, url)


async def _check_empty(connection: AsyncConnection) -> None:
    for table in await connection.run_sync(_tables):
        if await connection.scalar(select(func.count()).select_from(table)):
            raise ConflictError(
                f"the database holds a coordinator's data already (table {table.name}): name an empty one "
                "(--database-url), nothing was changed"
            )


async def _fill_table(connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    is_sqlite = connection.dialect.name == "sqlite"
    await connection.execute(
        insert(table), [{name: _stored(value, is_sqlite=is_sqlite) for name, value in row.items()} for row in rows]
    )
    if not is_sqlite and "id" in table.columns:
        sequence = text("SELECT setval(pg_get_serial_sequence(:table, 'id'), :last)")
        await connection.execute(sequence, {"table": table.name, "last": max(row["id"] for row in rows)})


async def _rows(connection: AsyncConnection, table: Table) -> list[dict[str, Any]]:
    found = await connection.execute(select(table).order_by(*table.primary_key.columns))
    return [{name: _in_utc(value) for name, value in row.items()} for row in found.mappings()]


def _in_utc(value: Any) -> Any:
    """SQLite has no time zones: there all times are UTC without saying so."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def _is_there(url: URL) -> bool:
    """Whether there is a database to look into: SQLite would make a new file."""
    return url.get_backend_name() != "sqlite" or Path(url.database or "").is_file()


def _revision(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or "base"


def _tables(connection: Connection) -> list[Table]:
    """As they are in the database, those first that others refer to."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name not in LEFT_OUT]


def _stored(value: Any, *, is_sqlite: bool) -> Any:
    if isinstance(value, datetime) and is_sqlite:
        return value.astimezone(UTC).replace(tzinfo=None)
    return value
