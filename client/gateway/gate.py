"""Who is let in while the gateway stops: nobody new; how long those inside may take, and what ends them then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from protocol.errors import DrainingError

RETRY_S = 5.0


class Gate:
    """Counts the requests under way."""

    def __init__(self) -> None:
        self.is_draining = False
        self.is_over = False
        """Whether those who were still inside had to end."""
        self._inside: set[asyncio.Task[object]] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def n_inside(self) -> int:
        """Requests under way."""
        return len(self._inside)

    @contextmanager
    def passed(self) -> Iterator[None]:
        """For one request, which is one task.

        Raises:
            DrainingError: the gateway is stopping, or has stopped before the answer was there.
        """
        if self.is_draining:
            raise DrainingError("the gateway is stopping: ask again in a moment", retry_after_s=RETRY_S)
        task = asyncio.current_task()
        assert task is not None, "requests are answered by tasks"
        self._inside.add(task)
        self._is_empty.clear()
        try:
            with self.told():
                yield
        finally:
            self._inside.discard(task)
            if not self._inside:
                self._is_empty.set()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Around what a stopping gateway cuts short, within `passed`: so that it can be said where it is answered.

        Raises:
            DrainingError: it did.
        """
        try:
            yield
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if not self.is_over or task is None:
                raise
            task.uncancel()
            raise DrainingError(
                "the gateway stopped before the answer was complete: ask again in a moment", retry_after_s=RETRY_S
            ) from exc

    async def drain(self, within_s: float, *, end_within_s: float) -> None:
        """Let nobody in any more and wait, so long, until those inside have gone; then end and tell those left."""
        self.is_draining = True
        if await self._emptied(within_s):
            return
        self.is_over = True
        for task in self._inside:
            task.cancel()
        await self._emptied(end_within_s)

    async def _emptied(self, within_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._is_empty.wait()
        return not self._inside
