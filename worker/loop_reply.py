"""How results get from the engine's thread to those who await them on the event loop.

Those of one batch come at once, and wake the loop once: it then writes all of their frames to a neighbour together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class LoopReplies:
    """What was answered and has not reached the event loop yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._answered: deque[tuple[asyncio.Future[Any], Any, Exception | None]] = deque()
        self._is_waking = False
        """Whether the loop is going to look; who finds this false has to wake it."""

    def new(self) -> LoopReply:
        """One more that is to be answered. Called from the loop."""
        return LoopReply(self, self._loop.create_future())

    def put(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        """Hand over what a future is to hold. Called from any thread; the loop must still run."""
        self._answered.append((future, result, error))
        if not self._is_waking:
            self._is_waking = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_waking = False  # first: what is put after this is either taken below, or wakes the loop again
        while self._answered:
            future, result, error = self._answered.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


class LoopReply:
    """Carries a result from the engine's thread to a future of the event loop."""

    __slots__ = ("_replies", "future")

    def __init__(self, replies: LoopReplies, future: asyncio.Future[Any]) -> None:
        self._replies = replies
        self.future = future

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more. Called from any thread."""
        return self.future.cancelled()

    def resolve(self, result: Any) -> None:
        """Hand the result over. Called from any thread; the loop must still run."""
        self._replies.put(self.future, result, None)

    def fail(self, error: Exception) -> None:
        """Hand over what went wrong. Likewise."""
        self._replies.put(self.future, None, error)
