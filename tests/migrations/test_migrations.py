from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, make_url, text

from coordinator.database import alembic_config, create_engine, migrate, opened
from coordinator.table_base import Base
from protocol.coordinator_errors import DatabaseVersionError
from protocol.errors import StorageError

ROOT = Path(__file__).parents[2]


def differences(connection: Connection) -> list[Any]:
    options = {"compare_type": True, "render_as_batch": True}
    return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


async def in_database(url: str, function: Any) -> Any:
    engine = create_engine(make_url(url), is_pooled=False)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(function)
    finally:
        await engine.dispose()


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def test_a_migrated_database_equals_the_models(database_url: str) -> None:
    async with opened(database_url) as engine, engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrations_go_down_and_up_again(database_url: str) -> None:
    async with opened(database_url):
        pass
    await asyncio.to_thread(migrate, database_url, "base")
    assert await in_database(database_url, table_names) <= {"alembic_version"}
    async with opened(database_url) as engine, engine.connect() as connection:
        assert await connection.run_sync(differences) == []


_USED = (
    "INSERT INTO api_keys (key_id, name, kind, secret_hash, created_at) "
    "VALUES ('k1', 'anna', 'client', 'h', '2026-11-01 00:00:00')",
    "INSERT INTO workers (worker_id, status, hostname, url, seen_at, epoch, assignment_reason) "
    "VALUES ('w-1', 'ready', 'h', 'u', '2026-11-01 00:00:00', 1, '')",
    "INSERT INTO models (id, name, revision, manifest) VALUES (1, 'tiny', 'r', '')",
    "INSERT INTO model_files (model_id, name, sha256, size_bytes) VALUES (1, 'config.json', 's', 2)",
    'INSERT INTO assignments (worker_id, position, epoch, model, revision, start, "end") '
    "VALUES ('w-1', 0, 1, 'tiny', 'r', 0, 4)",
    "INSERT INTO generations (session_id, key_id, model, revision, route, n_prompt_tokens, max_tokens, started_at) "
    "VALUES ('g', 'k1', 'tiny', 'r', '[]', 1, 1, '2026-11-01 00:00:00')",
)
"""Rows that refer to each other, as the first version had them."""


async def test_a_database_that_is_in_use_is_migrated(database_url: str) -> None:
    def use(connection: Connection) -> None:
        for statement in _USED:
            connection.execute(text(statement))

    await asyncio.to_thread(migrate, database_url, "0001")
    await in_database(database_url, use)
    async with opened(database_url) as engine, engine.connect() as connection:
        row = (await connection.execute(text("SELECT pinned_ends, n_replicas FROM models"))).one()
        assert tuple(map(int, row)) == (0, 1)
        for table in ("assignments", "generations", "model_files"):
            assert (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar() == 1


def by_hand(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command `alembic`, on this database."""
    command = [sys.executable, "-m", "alembic", *arguments]
    environ = os.environ | {"BRIGADE_DATABASE_URL": url}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


async def test_rows_that_refer_to_each_other_outlive_the_way_down_and_up(database_url: str) -> None:
    def use(connection: Connection) -> None:
        for statement in _USED:
            connection.execute(text(statement))

    def n_rows(connection: Connection) -> dict[str, int | None]:
        tables = ("api_keys", "workers", "models", "assignments", "generations", "model_files")
        return {table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() for table in tables}

    await asyncio.to_thread(migrate, database_url, "0001")
    await in_database(database_url, use)
    for direction in (("upgrade", "head"), ("downgrade", "0001"), ("upgrade", "head")):
        done = await asyncio.to_thread(by_hand, database_url, *direction)
        assert done.returncode == 0, done.stderr
        assert set((await in_database(database_url, n_rows)).values()) == {1}, direction
    async with opened(database_url) as engine, engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_migration_that_would_leave_rows_which_refer_to_nothing_is_undone(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    await asyncio.to_thread(migrate, url, "0001")
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection, connection:
        connection.execute(_USED[3])
    with pytest.raises(StorageError, match="1 of model_files to models"):
        await asyncio.to_thread(migrate, url)
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]


async def test_opening_twice_changes_nothing(database_url: str) -> None:
    for _ in range(2):
        async with opened(database_url) as engine, engine.connect() as connection:
            found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars().all()
            assert found == ScriptDirectory.from_config(alembic_config(make_url(database_url))).get_heads()


async def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(database_url: str) -> None:
    async with opened(database_url) as engine, engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseVersionError, match=r"9999.*newer version"):
        async with opened(database_url):
            pass
    names = await in_database(database_url, table_names)
    assert {"workers", "alembic_version"} <= names


async def test_a_failed_migration_leaves_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def table_and_failure(connection: Connection, *_: object) -> None:
        connection.execute(text("CREATE TABLE half_done (id INTEGER)"))
        raise DatabaseVersionError("stop here")

    monkeypatch.setattr("coordinator.database._run_alembic", table_and_failure)
    with pytest.raises(DatabaseVersionError, match="stop here"):
        async with opened(database_url):
            pass
    assert "half_done" not in await in_database(database_url, table_names)


def test_revisions_are_one_line() -> None:
    script = ScriptDirectory.from_config(alembic_config(make_url("sqlite+aiosqlite://")))
    assert len(script.get_heads()) == 1
    assert all(entry.doc for entry in script.walk_revisions())


def test_alembic_ini_serves_by_hand(tmp_path: Path) -> None:
    for arguments in (["upgrade", "head"], ["check"], ["downgrade", "base"]):
        done = by_hand(f"sqlite:///{tmp_path / 'hand.db'}", *arguments)
        assert done.returncode == 0, done.stderr
