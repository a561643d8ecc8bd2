from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from coordinator.database import opened
from coordinator.repository import Repository
from coordinator.same_file import SameFile
from coordinator.transactions import Transactions
from protocol.errors import StorageError
from protocol.ids import KeyId

NOW = datetime(2026, 11, 21, tzinfo=UTC)


async def test_a_file_that_is_not_the_one_it_was_is_not_used(tmp_path: Path) -> None:
    path, away = tmp_path / "x.db", tmp_path / "away.db"
    async with opened(f"sqlite+aiosqlite:///{path}") as engine:
        repository = Repository(engine)
        await repository.add_api_key(KeyId("k1"), "n", "client", "h", NOW)
        path.rename(away)
        for is_replaced in (False, True):
            if is_replaced:
                path.touch()
            with pytest.raises(StorageError, match="was moved, deleted or replaced"):
                await repository.add_api_key(KeyId("k2"), "n", "client", "h", NOW)
            with pytest.raises(StorageError, match="was moved, deleted or replaced"):
                await repository.api_keys()
            assert "was moved" in repository.problem
        away.rename(path)
        await repository.add_api_key(KeyId("k3"), "n", "client", "h", NOW)
        assert {key.key_id for key in await repository.api_keys()} == {"k1", "k3"}
        assert repository.problem == ""


async def test_a_file_that_is_moved_away_takes_all_along_and_an_older_copy_in_its_place_gets_none_of_it(
    tmp_path: Path,
) -> None:
    """The write-ahead log stays where it is, and SQLite would replay it onto whatever file has the name."""
    path, away, older = tmp_path / "x.db", tmp_path / "away.db", tmp_path / "older.db"
    async with opened(f"sqlite+aiosqlite:///{path}") as engine:
        repository = Repository(engine)
        await repository.add_api_key(KeyId("k1"), "n", "client", "h", NOW)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("VACUUM INTO ?", [str(older)])
        for n in range(2, 30):
            await repository.add_api_key(KeyId(f"k{n}"), "n", "client", "h", NOW)
        path.rename(away)
        shutil.copy(older, path)
        with pytest.raises(StorageError, match="was moved, deleted or replaced"):
            await repository.api_keys()
        assert path.with_name("x.db-wal").stat().st_size == 0, "whoever is killed now leaves nothing to replay"
    assert _keys_in(path) == {"k1"}
    assert _keys_in(away) == {f"k{n}" for n in range(1, 30)}


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="only Linux tells")
@pytest.mark.parametrize("is_back_at_once", [False, True])
async def test_the_log_of_a_file_that_is_moved_to_another_disk_stays_for_when_it_is_back(
    tmp_path: Path, is_back_at_once: bool
) -> None:
    """Such a move is a copy, after which the file is deleted: all that is written into that is lost."""
    path, away = tmp_path / "x.db", tmp_path / "away.db"
    async with opened(f"sqlite+aiosqlite:///{path}") as engine:
        repository = Repository(engine)
        for n in range(30):
            await repository.add_api_key(KeyId(f"k{n}"), "n", "client", "h", NOW)
        shutil.copy(path, away)
        path.unlink()
        with pytest.raises(StorageError, match="was moved, deleted or replaced"):
            await repository.api_keys()
        if is_back_at_once:  # which can't be told from an older file in its place
            shutil.copy(away, path)
            with pytest.raises(
                StorageError, match=r"a backup\. What was written to it last is in .*/x.db-wal\.left"
            ):
                await repository.api_keys()
    if is_back_at_once:
        path.with_name("x.db-wal.left").rename(path.with_name("x.db-wal"))
    shutil.copy(away, path)
    assert _keys_in(path) == {f"k{n}" for n in range(30)}


async def test_a_file_that_was_replaced_before_it_was_used_is_not_held(tmp_path: Path) -> None:
    path, away = tmp_path / "x.db", tmp_path / "away.db"
    async with opened(f"sqlite+aiosqlite:///{path}") as engine:
        file = SameFile(engine)
        path.rename(away)
        file._hold()  # as when it is moved while somebody looks
        assert not path.exists(), "a new one was made"
        away.rename(path)
        file.check()
        path.rename(away)
        with pytest.raises(StorageError, match="was moved"):
            file.check()


def _keys_in(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {key for (key,) in connection.execute("SELECT key_id FROM api_keys")}


async def test_that_reading_works_does_not_hide_that_writing_does_not(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE audit_log RENAME TO hidden")
        with pytest.raises(StorageError):
            await repository.add_api_key(KeyId("k1"), "n", "client", "h", NOW)
        assert await repository.api_keys() == ()
        assert "audit_log" in repository.problem


async def test_the_threads_end_with_the_database(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        thread = await repository.transactions.write_rows(lambda _rows: threading.current_thread())
        assert thread.is_alive()
    await asyncio.to_thread(thread.join, 10.0)
    assert not thread.is_alive()


async def test_what_others_do_in_threads_keeps_no_transaction_waiting(tmp_path: Path) -> None:
    """Whoever may ask for a look at a large fleet may ask for many at once."""
    may_end, loop = threading.Event(), asyncio.get_running_loop()
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        await repository.add_api_key(KeyId("k1"), "n", "client", "h", NOW)
        looks = [loop.run_in_executor(None, may_end.wait, 30.0) for _ in range(64)]
        try:
            async with asyncio.timeout(10.0):
                assert await repository.transactions.write_rows(lambda rows: rows.closed) is False
                assert await repository.api_key(KeyId("k1")) is not None
        finally:
            may_end.set()
            await asyncio.gather(*looks)


@pytest.mark.parametrize("n_cancellations", [1, 2, 3])
async def test_whoever_is_cancelled_several_times_leaves_no_lock_and_no_task(
    tmp_path: Path, n_cancellations: int
) -> None:
    """A timeout and the program's stop together are two: the second met a connection that was being closed."""
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        transactions = Transactions(engine)

        async def write() -> None:
            async with transactions.writing(is_fenced=False) as session:
                await session.execute(text("SELECT count(*) FROM workers"))

        tasks_before = asyncio.all_tasks()
        for n_steps, n_between in ((steps, between) for steps in range(36) for between in (0, 2)):
            task = asyncio.create_task(write(), name="write")  # noqa: TID251 - awaited below, whatever happens
            await let_run(n_steps)
            for _ in range(n_cancellations):
                task.cancel()
                await let_run(n_between)
            await asyncio.wait([task])
            await asyncio.wait_for(write(), 20.0)  # a lock that is left is an error after `BUSY_TIMEOUT_MS`
            if closing := asyncio.all_tasks() - tasks_before:
                assert not (await asyncio.wait(closing, timeout=10.0))[1]


async def let_run(n_steps: int) -> None:
    for _ in range(n_steps):
        await asyncio.sleep(0)
