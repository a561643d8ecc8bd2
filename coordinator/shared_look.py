"""An answer that takes long to make: one look at a time, for all who ask.

Who asks while a look is made gets the next one: what it shows is never older than the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from protocol.background import uninterrupted

T = TypeVar("T")


class SharedLook(Generic[T]):
    """Looks in a thread.

    Args:
        begin: called in the event loop when a look begins; what it gives is what the thread does.
    """

    def __init__(self, begin: Callable[[], Callable[[], T]]) -> None:
        self._begin = begin
        self._turn = asyncio.Lock()
        self._n_begun = 0
        self._made: tuple[int, T] | None = None
        """The newest answer, and the number of its look; kept while others wait for it."""
        self._n_asking = 0

    async def get(self) -> T:
        """The answer of a look that began after this was called; what the look raises is raised here."""
        n_before = self._n_begun
        self._n_asking += 1
        try:
            async with self._turn:
                if self._made is not None and self._made[0] > n_before:
                    return self._made[1]
                return await self._look()
        finally:
            self._n_asking -= 1
            if not self._n_asking:
                self._made = None

    async def _look(self) -> T:
        self._n_begun += 1
        # Who goes away leaves the thread at work, and another one beside it would be begun.
        answer = await uninterrupted(asyncio.to_thread(self._begin()))
        self._made = self._n_begun, answer
        return answer
