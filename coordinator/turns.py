"""Changes of one thing one after the other, however many ask for them at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from protocol.errors import OverloadedError

TURN_S = 10.0
"""So long a change waits for those before it."""


class Turns:
    """Who may change which resource now."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Nobody else changes the resource until the context ends.

        Raises:
            OverloadedError: those before took too long.
        """
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(TURN_S):
                await lock.acquire()
        except TimeoutError as exc:
            raise OverloadedError(
                f"other changes of {name} have taken over {TURN_S:.0f} s: ask again", retry_after_s=TURN_S
            ) from exc
        try:
            yield
        finally:
            lock.release()
