"""A coroutine on an event loop of its own, in a thread, that the program's own loop can cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any


class CutLoop:
    """Runs one coroutine; `cut` may come before that, meanwhile or after it, from any thread."""

    def __init__(self) -> None:
        self._is_cut = False
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """As `asyncio.run`. Blocks.

        Raises:
            CancelledError: it was cut.
        """
        asyncio.run(self._run(coroutine))

    def cut(self) -> None:
        """Have it cancelled. Whether it ends soon then is its own affair."""
        self._is_cut = True
        if self._running is not None:
            loop, task = self._running
            with suppress(RuntimeError):  # it is over, and its loop closed
                loop.call_soon_threadsafe(task.cancel)

    async def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        # first this, then the look: `cut` does it the other way round, so one of both sees the other
        self._running = asyncio.get_running_loop(), task
        if self._is_cut:
            task.cancel()
        await coroutine
