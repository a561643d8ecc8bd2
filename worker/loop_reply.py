"""How a result gets from the engine's thread to whoever awaits it on the event loop."""

from __future__ import annotations

import asyncio
from typing import Any


class LoopReply:
    """Carries a result from the engine's thread to a future of the event loop."""

    __slots__ = ("_loop", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more. Called from any thread."""
        return self.future.cancelled()

    def resolve(self, result: Any) -> None:
        """Hand the result over. Called from any thread; the loop must still run."""
        self._loop.call_soon_threadsafe(self._set, result, None)

    def fail(self, error: Exception) -> None:
        """Hand over what went wrong. Likewise."""
        self._loop.call_soon_threadsafe(self._set, None, error)

    def _set(self, result: Any, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)
