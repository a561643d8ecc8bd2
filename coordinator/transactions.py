"""Transactions on the database: foreign errors end here, and whoever has lost the lease writes nothing any more.

Whatever the database or its driver raises becomes a `StorageError` whose message holds no SQL and no values.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from contextvars import copy_context
from functools import cached_property, partial
from typing import Literal, TypeVar

import asyncpg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from coordinator.database import BUSY_TIMEOUT_MS, READ_ONLY, blocking_engine, database_errors
from coordinator.fence import Fence
from coordinator.same_file import SameFile
from coordinator.stop_limit import StopLimit
from protocol.background import uninterrupted
from protocol.coordinator_errors import LeaseError
from protocol.errors import StorageError

T = TypeVar("T")
TransactionKind = Literal["writing", "reading"]

PATIENCE_S = 2.0
"""For an answer that one can do without: an operator who asks how things are isn't kept waiting by the database."""
_threads = partial(ThreadPoolExecutor, max_workers=4, thread_name_prefix="database")
"""One that writes, one that checkpoints, some that see whether the file is there: a slow disk makes them wait."""
CHECKPOINT_TURNS = 100
"""Of writers on SQLite: one that records a route adds some eight pages of 4 KiB to the write-ahead log."""
TURNS_ANEW = 400
"""Then the log is to begin anew, or it would only grow: that takes a writer's turn."""


class Transactions:
    """Transactions on one database. All of it happens, or nothing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._file = SameFile(engine) if self.database == "sqlite" else None
        self.fence = Fence()
        self.stop_limit = StopLimit()
        """Of PostgreSQL only: SQLite lets go after `BUSY_TIMEOUT_MS`."""
        self.on_done: Callable[[TransactionKind, float], None] = lambda _kind, _seconds: None
        """Told of each transaction that is over, and of the seconds that it took after its turn had come."""
        self._sqlite_writer = asyncio.Lock()
        """SQLite has one writer at a time, and lets the others look again and again: here they stand in line."""
        self._threads = _threads()
        """Of its own: what others do in threads, such as looks at a large fleet, keeps no transaction waiting."""
        event.listen(engine.sync_engine, "engine_disposed", self._end_threads)
        self.checkpoint_due = asyncio.Event()
        """Set once enough was written since the last `checkpoint`."""
        self._n_turns = self._n_turns_anew = 0
        """Of writers on SQLite, since the last checkpoint, and since the log was to begin anew."""
        self._problems: dict[str, str] = {}
        """Of the last transaction that wrote, and of the last that read; both need not be in trouble."""

    @property
    def problem(self) -> str:
        """Why the database couldn't be used when it last was to be; empty if it could."""
        return self._problems.get("writing") or self._problems.get("reading") or ""

    @property
    def database(self) -> str:
        """Kind of database: `sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @asynccontextmanager
    async def writing(self, *, is_fenced: bool = True) -> AsyncIterator[AsyncSession]:
        """A transaction that writes.

        Raises:
            StorageError: the database can't be used (LeaseError: the lease is lost); nothing was written.
        """
        async with self._turn(), self._session("writing") as session:
            if is_fenced:
                await self.fence.check(session)
            yield session

    async def write(self, work: Callable[[Session], T]) -> T:
        """As `write_rows`, for work on objects."""

        def on_session(connection: Connection) -> T:
            with Session(connection, expire_on_commit=False, join_transaction_mode="rollback_only") as session:
                result = work(session)
                session.flush()
            return result

        return await self.write_rows(on_session)

    async def write_rows(self, work: Callable[[Connection], T]) -> T:
        """What `work` comes to, in a transaction as `writing` has it; `work` knows no event loop.

        On SQLite a thread runs all of it: to go there and back for each statement takes several times as long.

        Raises:
            StorageError: as `writing`.
        """
        async with self._turn():
            with self._noted("writing"):
                if self._file is not None:
                    return await uninterrupted(self._in_thread(partial(self._written, self._file, work)))
                with database_errors(self._engine.url):
                    async with self.stop_limit.kept(), self._engine.begin() as connection:
                        return await connection.run_sync(self._fenced, work)

    async def write_plainly(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As `write_rows`, on SQLite's own connection: for the few transactions that come with each generation.

        Raises:
            StorageError: as `writing`.
        """
        assert self._file is not None, "PostgreSQL has `write_natively`"
        async with self._turn():
            with self._noted("writing"):
                return await uninterrupted(self._in_thread(partial(self._written_plainly, self._file, work)))

    async def write_natively(self, locks: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """What `work` comes to on PostgreSQL's own connection, in a transaction that begins with `locks`.

        For the few transactions whose round trips count: BEGIN, `locks` and the fence's check are one.

        Raises:
            StorageError: as `writing`.
        """
        async with self._native("writing") as native:
            await self.fence.begin(native, locks)
            result = await work(native)
            await native.execute("COMMIT")
            return result

    async def write_at_once(self, statement: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """What one statement comes to, which is a transaction by itself and sees to the fence on its own.

        Raises:
            StorageError: as `writing`.
        """
        async with self._native("writing") as native:
            return await statement(native)

    async def read_at_once(self, statement: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """As `write_at_once`, of one that only reads.

        Raises:
            StorageError: the database can't be used.
        """
        async with self._native("reading") as native:
            return await statement(native)

    async def checkpoint(self) -> None:
        """On SQLite, have what the write-ahead log holds moved into the file, and kept by the disk, beside writers.

        What is written meanwhile stays in the log; so from time to time the rest is moved in a writer's turn.

        Raises:
            StorageError: the database can't be used.
        """
        self.checkpoint_due.clear()
        self._n_turns = 0
        if self._file is None:
            return
        moved = partial(self._moved_from_log, self._file)
        await uninterrupted(self._in_thread(moved))
        if self._n_turns_anew >= TURNS_ANEW:
            async with self._turn():
                await uninterrupted(self._in_thread(moved))
                self._n_turns_anew = 0

    @asynccontextmanager
    async def _native(self, what: TransactionKind) -> AsyncIterator[asyncpg.Connection]:
        with self._noted(what), database_errors(self._engine.url):
            async with self.stop_limit.kept(), self._engine.connect() as connection:
                native: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
                try:
                    yield native
                except BaseException:
                    await connection.invalidate()  # closed, and the transaction with it, wherever it stands
                    raise

    def _in_thread(self, step: Callable[[], T]) -> asyncio.Future[T]:
        """As `to_thread`, without a task around it: who is acting is known there too."""
        return asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, step)

    def _end_threads(self, _engine: Engine) -> None:
        """With the engine's connections, and as these they would be made anew for whoever goes on."""
        self._threads.shutdown(wait=False)
        self._threads = _threads()

    @cached_property
    def blocking(self) -> Engine:
        """What `write_rows` uses on SQLite."""
        return blocking_engine(self._engine)

    def _written(self, file: SameFile, work: Callable[[Connection], T]) -> T:
        file.check()
        with database_errors(self._engine.url), self.blocking.begin() as connection:
            return self._fenced(connection, work)

    def _written_plainly(self, file: SameFile, work: Callable[[sqlite3.Connection], T]) -> T:
        file.check()
        with database_errors(self._engine.url), closing(self.blocking.raw_connection()) as pooled:
            connection = pooled.driver_connection
            assert isinstance(connection, sqlite3.Connection)
            connection.execute("BEGIN IMMEDIATE")
            try:
                self.fence.check_plainly(connection)
                result = work(connection)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            return result

    def _moved_from_log(self, file: SameFile) -> None:
        file.check()
        with database_errors(self._engine.url), closing(self.blocking.raw_connection()) as pooled:
            pooled.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _fenced(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        self.fence.check_now(connection)
        return work(connection)

    @asynccontextmanager
    async def reading(self, within_s: float | None = None) -> AsyncIterator[AsyncSession]:
        """A transaction that only reads; it sees one moment.

        Raises:
            StorageError: the database can't be used, or doesn't answer `within_s`.
        """
        async with self._session("reading", within_s) as session:
            await session.connection(execution_options=READ_ONLY)
            yield session

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """On SQLite, one writer at a time.

        Raises:
            StorageError: those before take too long.
        """
        if self._file is None:
            yield
            return
        try:
            async with asyncio.timeout(BUSY_TIMEOUT_MS / 1000):
                await self._sqlite_writer.acquire()
        except TimeoutError as exc:
            error = StorageError(
                f"the database has been locked for {BUSY_TIMEOUT_MS / 1000:g} s by what was to be written before: "
                "try again, and see whether another program holds it or its disk is slow"
            )
            self._problems["writing"] = error.message
            raise error from exc
        try:
            yield
        finally:
            self._sqlite_writer.release()
            self._n_turns += 1
            self._n_turns_anew += 1
            if self._n_turns >= CHECKPOINT_TURNS:
                self.checkpoint_due.set()

    @asynccontextmanager
    async def _session(self, what: TransactionKind, within_s: float | None = None) -> AsyncIterator[AsyncSession]:
        with self._noted(what):
            if self._file is not None:
                await self._in_thread(self._file.check)
            with database_errors(self._engine.url):
                async with (
                    asyncio.timeout(within_s) if self._file is not None else self.stop_limit.kept(within_s),
                    AsyncSession(self._engine, expire_on_commit=False) as session,
                    session.begin(),
                ):
                    yield session

    @contextmanager
    def _noted(self, what: TransactionKind) -> Iterator[None]:
        """Keep whether this worked, for operators, and whether the lease is lost, for who holds it."""
        began_s = time.perf_counter()
        try:
            yield
        except StorageError as error:
            self._problems[what] = error.message
            if isinstance(error, LeaseError):
                self.fence.lost.set()
            raise
        finally:
            self.on_done(what, time.perf_counter() - began_s)
        self._problems.pop(what, None)
