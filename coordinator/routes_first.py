"""Whose turn it is to write: routes, whose clients wait, before reports, for which nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

LONGEST_S = 0.05
"""So long reports let routes go before them. They give back what isn't used, and must not fall behind."""


class RoutesFirst:
    """One at a time. Reports begin when no route comes, or when they have waited for long enough."""

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s
        self._lock = asyncio.Lock()
        self._n_coming = 0
        self._nobody_comes = asyncio.Event()
        self._nobody_comes.set()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """While it lasts, a route waits for its turn, or has it."""
        self._n_coming += 1
        self._nobody_comes.clear()
        try:
            yield
        finally:
            self._n_coming -= 1
            if not self._n_coming:
                self._nobody_comes.set()

    @asynccontextmanager
    async def of_routes(self) -> AsyncIterator[None]:
        """The turn of routes, that are as a rule `coming`."""
        async with self._lock:
            yield

    @asynccontextmanager
    async def of_reports(self) -> AsyncIterator[None]:
        """The turn of reports, as soon as no route comes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._longest_s):
                while self._n_coming:
                    await self._nobody_comes.wait()
        async with self._lock:
            yield
