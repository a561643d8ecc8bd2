"""How long a database that hangs may keep a program that is to stop: its transactions, and its connections.

Until then each transaction has the limits of its own statements, which are long: a slow database is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

log = structlog.get_logger(__name__)

CLOSE_S = 2.0
"""For the server to say goodbye on all connections together; the driver waits for it for ever."""


class StopLimit:
    """The transactions that run. Once one took too long after `begin`, the database is asked nothing more."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()
        self._limit_s: float | None = None
        """Set once the program is to stop."""
        self._is_given_up = False

    @property
    def n_running(self) -> int:
        """How many transactions run."""
        return len(self._open)

    @property
    def has_begun(self) -> bool:
        """Whether the program is to stop."""
        return self._limit_s is not None

    def begin(self, limit_s: float) -> None:
        """Give what runs, and each that comes, so many seconds from now on."""
        self._limit_s = limit_s
        if self._open:
            log.info("stop_waits_for_database", n_transactions=self.n_running, at_most_s=limit_s)
        ends_s = asyncio.get_running_loop().time() + limit_s
        for limit in self._open:
            when_s = limit.when()
            if not limit.expired() and (when_s is None or when_s > ends_s):
                limit.reschedule(ends_s)

    @asynccontextmanager
    async def kept(self, within_s: float | None = None) -> AsyncIterator[None]:
        """Cancel what is inside when its time is over: `within_s`, or less once the program is to stop.

        Raises:
            TimeoutError: it is over.
        """
        if self._is_given_up:
            raise TimeoutError
        if self._limit_s is not None:
            within_s = self._limit_s if within_s is None else min(within_s, self._limit_s)
        limit = asyncio.timeout(within_s)
        try:
            async with limit:
                self._open.add(limit)
                yield
        finally:
            self._open.discard(limit)
            if limit.expired() and self._limit_s is not None and not self._is_given_up:
                self._is_given_up = True
                log.warning("stop_gave_database_up", after_s=self._limit_s)


async def close_connections(engine: AsyncEngine) -> None:
    """Close all connections of the engine; those that the server doesn't let go in time are cut off."""
    if engine.dialect.name != "postgresql":
        await engine.dispose()
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await engine.dispose()
    except TimeoutError:
        log.warning("database_connections_cut_off", after_s=CLOSE_S)
        event.listen(engine.sync_engine, "close", _cut_off)
        await engine.dispose()


def _cut_off(connection: Any, _record: Any) -> None:
    connection.driver_connection.terminate()
