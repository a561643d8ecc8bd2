"""SQLite for the event loop: no cancellation cuts a statement, or what ends a connection, in two.

Each runs in the connection's thread whether or not somebody waits for it. Where nobody does, the next one comes
before its end is known, and a transaction that was to be undone stays open: with its lock.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import aiosqlite

from protocol.background import uninterrupted


class WholeStatements(aiosqlite.Connection):
    """A connection whose statements the caller waits for, however often it is cancelled meanwhile."""

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await uninterrupted(super()._execute(fn, *args, **kwargs))  # type: ignore[no-untyped-call]

    def stop(self) -> asyncio.Future[Any] | None:
        """After what is queued, undo what is open and close: a statement read in part would keep the lock else.

        Returns what comes when that is done; None: somebody has begun it before, and twice it would never come.
        """
        if not self._running:
            return None
        if self._connection is not None:
            self._tx.put_nowait((None, self._connection.rollback))
        return super().stop()

    async def close(self) -> None:
        """As `stop`, and wait for it."""
        stopped = self.stop()
        if stopped is not None:
            await uninterrupted(stopped)


def whole_statements(database: str, **options: Any) -> WholeStatements:
    """As `aiosqlite.connect`; its thread keeps no program from ending."""
    connection = WholeStatements(lambda: sqlite3.connect(database, **options), iter_chunk_size=64)
    connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy does with those that it makes
    return connection
