"""Transactions on the database: foreign errors end here, and whoever has lost the lease writes nothing any more.

Whatever the database or its driver raises becomes a `StorageError` whose message holds no SQL and no values.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from coordinator.background import uninterrupted
from coordinator.database import BUSY_TIMEOUT_MS, READ_ONLY, SameFile, blocking_engine, database_errors
from coordinator.tables import LeaseRow
from protocol.errors import LeaseError, StorageError

T = TypeVar("T")

LEASE_ID = 1
"""Of the table's only row."""


class Fence:
    """Which epoch of the lease this program writes under; None: it needs no lease (a tool, a test)."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.lost = asyncio.Event()
        """Set once a transaction found the lease taken by another coordinator; then nothing is written again."""

    async def check(self, session: AsyncSession) -> None:
        """Hold the lease as it is until the transaction ends.

        Raises:
            LeaseError: another coordinator has taken it.
        """
        await session.run_sync(self.check_now)

    def check_now(self, session: Session) -> None:
        """As `check`, where waiting is no matter."""
        if self.epoch is None:
            return
        # Shared with our other writers; a coordinator that takes the lease has to wait for all of them.
        query = select(LeaseRow.epoch).where(LeaseRow.id == LEASE_ID).with_for_update(read=True)
        if session.scalar(query) != self.epoch:
            raise LeaseError(
                "another coordinator has taken this database over, so this one has stopped writing to it and ends; "
                "`coord status` with the other's URL shows the cluster"
            )


class Transactions:
    """Transactions on one database. All of it happens, or nothing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._file = SameFile(Path(engine.url.database or "")) if self.database == "sqlite" else None
        self.fence = Fence()
        self._sqlite_writer = asyncio.Lock()
        """SQLite has one writer at a time, and lets the others look again and again: here they stand in line."""
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
        """What `work` comes to, in a transaction as `writing` has it; `work` knows no event loop.

        On SQLite a thread runs all of it: to go there and back for each statement takes several times what the
        statements themselves take.

        Raises:
            StorageError: as `writing`.
        """
        if self._file is None:
            async with self.writing() as session:
                return await session.run_sync(work)
        async with self._turn():
            with self._noted("writing"):
                return await uninterrupted(asyncio.to_thread(self._written, self._file, work))

    @cached_property
    def blocking(self) -> Engine:
        """What `write` uses on SQLite."""
        return blocking_engine(self._engine)

    def _written(self, file: SameFile, work: Callable[[Session], T]) -> T:
        file.check()
        with (
            database_errors(self._engine.url),
            Session(self.blocking, expire_on_commit=False) as session,
            session.begin(),
        ):
            self.fence.check_now(session)
            return work(session)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A transaction that only reads; it sees one moment.

        Raises:
            StorageError: the database can't be used.
        """
        async with self._session("reading") as session:
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

    @asynccontextmanager
    async def _session(self, what: Literal["writing", "reading"]) -> AsyncIterator[AsyncSession]:
        with self._noted(what):
            if self._file is not None:
                await asyncio.to_thread(self._file.check)
            with database_errors(self._engine.url):
                async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
                    yield session

    @contextmanager
    def _noted(self, what: Literal["writing", "reading"]) -> Iterator[None]:
        """Keep whether this worked, for operators, and whether the lease is lost, for who holds it."""
        try:
            yield
        except StorageError as error:
            self._problems[what] = error.message
            if isinstance(error, LeaseError):
                self.fence.lost.set()
            raise
        self._problems.pop(what, None)
