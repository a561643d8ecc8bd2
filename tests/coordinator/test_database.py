from __future__ import annotations

import asyncio
import math
import socket
import sqlite3
import stat
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from coordinator import rested_connections
from coordinator.database import READ_ONLY, opened
from coordinator.log_tables import AuditRow
from protocol.errors import StorageError
from protocol.exit_codes import EXIT_STORAGE
from tests.support.postgres import PostgresServer


async def test_sqlite_is_set_up_for_one_writer_and_many_readers(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    async with opened(f"sqlite+aiosqlite:///{path}") as engine, engine.connect() as connection:
        for pragma, expected in (("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 4_000)):
            assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar() == expected
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'new.db'}") as engine, engine.connect() as writer:
        await writer.execute(text("INSERT INTO settings VALUES ('a', 'b')"))
        async with asyncio.timeout(5), engine.connect() as plain:
            reader = await plain.execution_options(**READ_ONLY)
            assert (await reader.execute(text("SELECT count(*) FROM settings"))).scalar() == 0


async def test_foreign_keys_hold(database_url: str) -> None:
    insert = text("INSERT INTO model_files (model_id, name, sha256, size_bytes) VALUES (7, 'a', 'b', 1)")
    async with opened(database_url) as engine, engine.connect() as connection:
        with pytest.raises(IntegrityError):
            await connection.execute(insert)


async def add_audit(engine: AsyncEngine, at: datetime) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add(AuditRow(at=at, action="a", subject="s", details="d"))


async def test_times_come_back_in_utc(database_url: str) -> None:
    at = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    async with opened(database_url) as engine:
        await add_audit(engine, at)
        async with AsyncSession(engine) as session:
            found = (await session.scalars(select(AuditRow.at))).one()
    assert found == at
    assert found.tzinfo is UTC


async def test_a_time_without_zone_is_refused(database_url: str) -> None:
    async with opened(database_url) as engine:
        with pytest.raises(StatementError, match="no time zone"):
            await add_audit(engine, datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake in question


async def refused(url: str) -> str:
    with pytest.raises(StorageError) as caught:
        async with opened(url):
            pass
    assert caught.value.exit_code == EXIT_STORAGE
    return str(caught.value)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, " * 1000)
    assert "file is not a database" in await refused(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file or directory" in await refused(f"sqlite+aiosqlite:///{tmp_path / 'no' / 'x.db'}")


async def test_no_postgresql_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        message = await refused(f"postgresql+asyncpg://user:hunter2@127.0.0.1:{port}/brigade")
    assert f"127.0.0.1:{port}" in message
    assert "--database-url" in message
    assert "hunter2" not in message


async def test_a_postgresql_database_that_is_not_there(postgres_server: object) -> None:
    folder = postgres_server.socket_folder  # type: ignore[attr-defined]
    message = await refused(f"postgresql+asyncpg://postgres@/nowhere?host={folder}")
    assert "does not exist" in message
    assert f"at {folder}:5432" in message


async def test_a_file_that_another_program_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.database.BUSY_TIMEOUT_MS", 100)
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        message = await refused(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    assert message.endswith("database is locked for 0.1 s: try again, and see which other program holds it")


async def test_connections_that_the_server_closed_are_replaced_and_rested_ones_asked(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings: list[object] = []

    async def used(engine: AsyncEngine, *others: AsyncEngine) -> None:
        for one in (engine, *others):
            async with one.begin() as connection:
                await connection.execute(text("SELECT 1"))

    url = postgres_server.new_database()
    async with opened(url) as engine, opened(url) as other:
        ping = engine.dialect.do_ping
        monkeypatch.setattr(
            engine.dialect, "do_ping", lambda connection: pings.append(connection) or ping(connection)
        )
        monkeypatch.setattr(rested_connections, "PING_AFTER_S", math.inf)  # however busy the machine is
        await used(engine, engine)
        assert pings == [], "it was used a moment ago"
        async with other.begin() as connection:
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            )
        for _ in range(3):  # until the loop has seen it, if it hasn't yet
            with suppress(DBAPIError):
                await used(engine)
        await used(engine)
        monkeypatch.setattr(rested_connections, "PING_AFTER_S", 0.0)
        await used(engine)
        assert len(pings) == 1
