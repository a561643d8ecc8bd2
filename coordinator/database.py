"""The database engine: opened, brought to the newest schema, and closed. Knows no tables.

SQLite runs in WAL mode with foreign keys on; a transaction that will write takes the write lock at its beginning,
so that two of them wait for each other instead of failing. Migration has an event loop and a connection of its
own, in a thread.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import asyncpg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

import migrations
from coordinator.cut_loop import CutLoop
from coordinator.database_words import advice, described, first_line
from coordinator.rested_connections import see_that_connections_answer
from coordinator.slow_starts import told_if_slow
from coordinator.stop_limit import close_connections
from coordinator.whole_statements import whole_statements
from protocol.background import uninterrupted
from protocol.coordinator_errors import DatabaseVersionError
from protocol.errors import StorageError

_QUIET: dict[str, Any] = {"hide_parameters": True}  # errors come to logs, values must not
BUSY_TIMEOUT_MS = 4_000
"""A writer waits so long for another one. Longer, and whoever asked thinks that nobody is there."""
LONGEST_LOG_PAGES = 8_192
"""Of SQLite's write-ahead log, 4 KiB each: a writer that leaves it longer moves it into the file itself, and waits
for the disk. `Transactions.checkpoint` does so beside those who write, long before."""
CONNECT_TIMEOUT_S = 10.0
QUERY_TIMEOUT_S = 30.0
# InternalClientError: the server's last words have come, the end of the connection not yet
_ASYNCPG_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
LONGEST_SILENCE_S = 30.0
"""In the middle of a transaction, until PostgreSQL undoes it. A machine that lost its power there says no goodbye,
and whoever takes over waits for what it has locked: TCP alone lets go after two hours."""
LEASE_SCHEMA = "0003"
"""The first schema with a lease (`coordinator.lease`), which then decides who may go further: until a coordinator
holds it, another one may work on the tables as they are."""
MIGRATION_LOCK = 0x6272_6967
"""PostgreSQL advisory lock that one migration at a time holds ("brig")."""

READ_ONLY: Mapping[str, Any] = MappingProxyType({"brigade_read_only": True})
"""Execution options of a connection that won't write."""


@asynccontextmanager
async def opened(url: str, revision: str = "head") -> AsyncIterator[AsyncEngine]:
    """An engine on the database at `url`, its schema brought up to `revision` at least; closed with the context.

    Raises:
        DatabaseVersionError: a newer version of Brigade wrote the database; nothing was changed.
        StorageError: it can't be reached or used.
    """
    await migrated(url, revision)
    engine = create_engine(make_url(url))
    try:
        yield engine
    finally:
        await uninterrupted(close_connections(engine))  # what isn't closed here is left to the garbage collector


async def migrated(url: str, revision: str = "head") -> None:
    """As `migrate`. PostgreSQL's is one transaction, on a server that may hang: a caller's cancellation cuts it.

    Raises:
        DatabaseVersionError, StorageError: as `opened`.
    """
    loop, parsed = CutLoop(), make_url(url)
    is_cut_off = parsed.get_backend_name() == "postgresql"
    async with told_if_slow(described(parsed)):
        await uninterrupted(
            asyncio.to_thread(migrate, url, revision, loop.run), loop.cut if is_cut_off else lambda: None
        )


def migrate(
    url: str, revision: str = "head", run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
) -> None:
    """Bring the schema up to `revision` at least; "base" takes everything away.

    Blocks; no event loop may run in this thread. `run` runs what needs one.

    Raises:
        DatabaseVersionError, StorageError: as `opened`.
    """
    parsed = make_url(url)
    with database_errors(parsed):
        _create_privately(parsed)
        run(_migrate(parsed, revision))


def create_engine(url: URL, *, is_pooled: bool = True, migrates: bool = False) -> AsyncEngine:
    """An engine with this program's settings for either database; whoever makes it disposes of it.

    One that `migrates` lets SQLite's tables be made anew under rows that refer to theirs: `check_references` after.
    """
    options: dict[str, Any] = _QUIET if is_pooled else {**_QUIET, "poolclass": NullPool}
    if url.get_backend_name() == "sqlite":
        asking = {"timeout": BUSY_TIMEOUT_MS / 1000, "async_creator_fn": whole_statements}
        engine = create_async_engine(url, connect_args=asking, **options)
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        if migrates:  # it can't be changed within a transaction
            event.listen(engine.sync_engine, "connect", _without_references)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    settings = {
        # Who counts under a lock sees what was committed while it waited, whatever the server's default is.
        "default_transaction_isolation": "read committed",
        "idle_in_transaction_session_timeout": f"{LONGEST_SILENCE_S * 1000:.0f}",
    }
    asking = {"timeout": CONNECT_TIMEOUT_S, "command_timeout": QUERY_TIMEOUT_S, "server_settings": settings}
    if is_pooled:  # whose server process was at work just now has all that it needs at hand
        options = {**options, "pool_use_lifo": True}
    engine = create_async_engine(url, connect_args=asking, **options)
    see_that_connections_answer(engine)
    return engine


def blocking_engine(engine: AsyncEngine) -> Engine:
    """The same SQLite file, for transactions that a thread runs as a whole; disposed of when `engine` is."""
    url = engine.url.set(drivername="sqlite+pysqlite")
    blocking = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, **_QUIET)
    event.listen(blocking, "connect", _set_up_sqlite)
    event.listen(blocking, "begin", _begin_sqlite)
    event.listen(engine.sync_engine, "engine_disposed", lambda _engine: blocking.dispose())
    return blocking


def check_references(connection: Connection) -> None:
    """See, at the end of a migration, that every row which refers to another one still has it.

    Raises:
        StorageError: some don't; the migration is to be rolled back.
    """
    if connection.dialect.name != "sqlite":
        return  # PostgreSQL has seen to it all the time
    lost = Counter((row[0], row[2]) for row in connection.exec_driver_sql("PRAGMA foreign_key_check"))
    if lost:
        words = ", ".join(f"{n} of {table} to {parent}" for (table, parent), n in sorted(lost.items()))
        raise StorageError(
            f"{described(connection.engine.url)} has rows that refer to rows that aren't there ({words}), so its "
            "schema is left as it was: restore a backup, or delete those rows"
        )


def alembic_config(url: URL) -> Config:
    """Alembic's settings for a database, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    return config


@contextmanager
def database_errors(url: URL) -> Iterator[None]:
    """Turn what the database and its driver raise into a StorageError without SQL, values or passwords."""
    try:
        yield
    except DBAPIError as exc:
        raise _unusable(url, first_line(exc.orig or exc), exc.orig) from exc
    except SQLAlchemyError as exc:
        raise _unusable(url, type(exc).__name__, None) from exc
    except (sqlite3.Error, OSError, *_ASYNCPG_ERRORS) as exc:
        reason = "it doesn't answer in time" if isinstance(exc, TimeoutError) else first_line(exc)
        raise _unusable(url, reason, exc) from exc


def _unusable(url: URL, reason: str, exc: BaseException | None) -> StorageError:
    what_to_do = advice(url, exc, busy_timeout_s=BUSY_TIMEOUT_MS / 1000)
    return StorageError(f"{described(url)} can't be used: {reason}{what_to_do}")


async def _migrate(url: URL, revision: str) -> None:
    engine = create_engine(url, is_pooled=False, migrates=True)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run_alembic, url, revision)
    finally:
        await engine.dispose()


def _run_alembic(connection: Connection, url: URL, revision: str) -> None:
    config = alembic_config(url)
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    script = ScriptDirectory.from_config(config)
    known = {entry.revision for entry in script.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_heads()
    if unknown := sorted(set(current) - known):
        raise DatabaseVersionError(
            f"{described(url)} is at schema {', '.join(unknown)}, which this version of Brigade doesn't know (its "
            f"newest is {script.get_current_head()}): a newer version wrote it; install that one, or use another "
            "database"
        )
    if revision not in (*known, "head", "base"):
        raise DatabaseVersionError(
            f"schema {revision[:40]} isn't known to this version of Brigade (its newest is "
            f"{script.get_current_head()}): a newer version wrote it; install that one"
        )
    config.attributes["connection"] = connection
    if revision == "base":  # tests and operators only; a start goes up
        command.downgrade(config, revision)
    elif current != (script.get_current_head(),):
        command.upgrade(config, revision)


def _create_privately(url: URL) -> None:
    """Make a missing SQLite file, readable by us alone; its journals take over its permissions.

    One that is there isn't even opened: to close it would undo all locks that this process has on it, those of
    SQLite's connections too (POSIX). Whoever looks into it then takes himself for its last user, and takes the
    write-ahead log away from under us.
    """
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return
    if not Path(url.database).exists():
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT, 0o600))


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, so that DDL is in the transaction too
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        f"wal_autocheckpoint = {LONGEST_LOG_PAGES}",
        f"journal_size_limit = {LONGEST_LOG_PAGES * 4096}",  # what a long reader, as a backup, made it grow by
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _without_references(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    is_read_only = connection.get_execution_options().get("brigade_read_only", False)
    connection.exec_driver_sql("BEGIN" if is_read_only else "BEGIN IMMEDIATE")
