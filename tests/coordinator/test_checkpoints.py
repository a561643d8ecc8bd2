"""SQLite's write-ahead log is moved into the file beside who writes, who don't wait for it, and begins anew."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from sqlite3 import Connection, connect

import pytest
from structlog.testing import capture_logs

from coordinator.checkpoints import checkpoint_forever
from coordinator.database import LONGEST_LOG_PAGES, opened
from coordinator.transactions import CHECKPOINT_TURNS, TURNS_ANEW, Transactions
from protocol.errors import StorageError
from protocol.running_beside import running_beside
from tests.support.postgres import PostgresServer
from tests.support.waiting import eventually

PAGE_BYTES = 4096
MANY_BYTES = 100 * PAGE_BYTES


class Log:
    """A database of one table, and the files that it is in."""

    def __init__(self, path: Path, transactions: Transactions) -> None:
        self.path = path
        self.transactions = transactions

    @property
    def file_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def log_bytes(self) -> int:
        return self.path.with_name(f"{self.path.name}-wal").stat().st_size

    @property
    def n_begun_anew(self) -> int:
        """The log's own count (bytes 12 to 16 of its header)."""
        header = self.path.with_name(f"{self.path.name}-wal").read_bytes()[:16]
        return int.from_bytes(header[12:], "big")

    async def write(self, n_bytes: int = 1) -> None:
        await self.transactions.write_plainly(
            lambda rows: rows.execute("INSERT INTO written VALUES (zeroblob(?))", (n_bytes,)).close()
        )

    async def write_until_due(self) -> None:
        while not self.transactions.checkpoint_due.is_set():
            await self.write()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    path = tmp_path / "x.db"
    async with opened(f"sqlite+aiosqlite:///{path}") as engine:
        log = Log(path, Transactions(engine))
        await log.transactions.write_plainly(lambda rows: rows.execute("CREATE TABLE written (it BLOB)").close())
        await log.transactions.checkpoint()
        yield log


@asynccontextmanager
async def somebody_writing(log: Log) -> AsyncIterator[None]:
    """A writer whose turn it is, for as long as the context lasts."""
    has_begun, may_end = threading.Event(), threading.Event()

    def work(_rows: Connection) -> None:
        has_begun.set()
        may_end.wait(30.0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(log.transactions.write_plainly(work))
        assert await asyncio.to_thread(has_begun.wait, 30.0)
        try:
            yield
        finally:
            may_end.set()


async def test_writers_leave_it_in_the_log_until_that_is_very_long(log: Log) -> None:
    before = log.file_bytes
    await log.write(PAGE_BYTES * (LONGEST_LOG_PAGES - 100))
    assert log.file_bytes == before
    await log.write(MANY_BYTES)
    assert log.file_bytes > before + PAGE_BYTES * (LONGEST_LOG_PAGES - 100)


async def test_it_is_moved_beside_a_writer(log: Log) -> None:
    await log.write(MANY_BYTES)
    before = log.file_bytes
    async with somebody_writing(log), asyncio.timeout(30.0):
        await log.transactions.checkpoint()
        assert log.file_bytes >= before + MANY_BYTES


async def test_it_is_due_once_enough_turns_have_been_taken(log: Log) -> None:
    for _ in range(CHECKPOINT_TURNS - 1):
        await log.write()
    assert not log.transactions.checkpoint_due.is_set()
    await log.write()
    assert log.transactions.checkpoint_due.is_set()
    await log.transactions.checkpoint()
    assert not log.transactions.checkpoint_due.is_set()


async def test_from_time_to_time_the_rest_is_moved_in_a_turn_so_that_the_log_begins_anew(log: Log) -> None:
    """Whatever comes while it is moved stays, so beside those who always write it would never be empty."""
    for _ in range(TURNS_ANEW):
        await log.write()
    with closing(connect(log.path)) as reader:
        await log.write(MANY_BYTES)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM written").fetchone()
        await log.write(MANY_BYTES)  # stays in the log for as long as somebody reads what was before
        before = log.file_bytes
        async with asyncio.TaskGroup() as tasks, somebody_writing(log):
            tasks.create_task(log.transactions.checkpoint())
            await eventually(lambda: log.file_bytes >= before + MANY_BYTES)
            reader.rollback()
    n_before = log.n_begun_anew
    await log.write()
    assert log.n_begun_anew == n_before + 1


async def test_what_a_long_reader_made_it_grow_by_goes_back_to_the_disk(log: Log) -> None:
    with closing(connect(log.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM written").fetchone()
        for _ in range(2):
            await log.write(PAGE_BYTES * LONGEST_LOG_PAGES)
        assert log.log_bytes > 2 * PAGE_BYTES * LONGEST_LOG_PAGES
    await log.transactions.checkpoint()
    await log.write()
    assert log.log_bytes <= PAGE_BYTES * LONGEST_LOG_PAGES


async def test_it_goes_on_whenever_it_is_due(log: Log) -> None:
    async with running_beside(checkpoints=checkpoint_forever(log.transactions)):
        for _ in range(2):
            await log.write(MANY_BYTES)
            before = log.file_bytes
            await log.write_until_due()
            await eventually(lambda before=before: log.file_bytes >= before + MANY_BYTES)


async def test_a_file_that_is_not_the_one_it_was_is_left_alone_and_that_is_logged(log: Log) -> None:
    await log.write_until_due()
    away = log.path.rename(log.path.with_name("away.db"))
    with pytest.raises(StorageError, match="was moved, deleted or replaced"):
        await log.transactions.checkpoint()
    log.transactions.checkpoint_due.set()
    with capture_logs() as logs:
        async with running_beside(checkpoints=checkpoint_forever(log.transactions)):
            await eventually(lambda: [entry["event"] for entry in logs] == ["checkpoint_failed"])
            away.rename(log.path)
            before = log.file_bytes
            await log.write(MANY_BYTES)
            await log.write_until_due()
            await eventually(lambda: log.file_bytes >= before + MANY_BYTES)


async def test_on_postgresql_there_is_nothing_to_move(postgres_server: PostgresServer) -> None:
    async with opened(postgres_server.new_database()) as engine:
        transactions = Transactions(engine)
        for _ in range(CHECKPOINT_TURNS):
            async with transactions.writing():
                pass
        assert not transactions.checkpoint_due.is_set()
        await transactions.checkpoint()
