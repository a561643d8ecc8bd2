"""Several answers at once: what is ready of any of them, in batches, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Generic, TypeVar

from protocol.errors import BrigadeError
from protocol.running_beside import running_beside

E = TypeVar("E")

MAX_READY = 1024
"""Events that wait to be written; those who make them then wait too."""
MAX_AT_ONCE = 8
"""Generations that run at once for one request; the others begin as these end."""


class Merged(Generic[E]):
    """The events of all sources. Made by `merged`."""

    def __init__(self, n_sources: int) -> None:
        self._n_open = n_sources
        self._ready: list[tuple[int, E]] = []
        self._error: BaseException | None = None
        self._has_some = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def batch(self, wait_s: float) -> list[tuple[int, E]] | None:
        """All that is ready, each with its source's number; empty if nothing came within `wait_s`; None at the end.

        Raises:
            BrigadeError: a source failed; what came before was given.
        """
        if not self._ready and self._n_open and self._error is None:
            self._has_some.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._has_some.wait()
            except TimeoutError:
                return []
        ready, self._ready = self._ready, []
        self._has_room.set()
        if ready:
            return ready
        if self._error is not None:
            raise self._error
        return None

    async def fill(self, index: int, source: AsyncGenerator[E, None], turns: asyncio.Semaphore) -> None:
        """Take all that one source gives."""
        try:
            async with turns, aclosing(source):
                async for event in source:
                    self._ready.append((index, event))
                    self._has_some.set()
                    if len(self._ready) >= MAX_READY:
                        self._has_room.clear()
                        await self._has_room.wait()
        except BrigadeError as error:
            self._error = error
        finally:
            self._n_open -= 1
            self._has_some.set()


@asynccontextmanager
async def merged(sources: Sequence[AsyncGenerator[E, None]]) -> AsyncIterator[Merged[E]]:
    """Run all sources, so many at once, until the context closes, which ends those that still run."""
    together: Merged[E] = Merged(len(sources))
    turns = asyncio.Semaphore(MAX_AT_ONCE)
    loops = {f"answer-{index}": together.fill(index, source, turns) for index, source in enumerate(sources)}
    async with running_beside(**loops):
        yield together


async def collected(sources: Sequence[AsyncGenerator[E, None]]) -> list[list[E]]:
    """All events of each source."""
    found: list[list[E]] = [[] for _ in sources]
    async with merged(sources) as together:
        while (batch := await together.batch(wait_s=3600.0)) is not None:
            for index, event in batch:
                found[index].append(event)
    return found
