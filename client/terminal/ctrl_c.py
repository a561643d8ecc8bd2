"""Ctrl-C in a chat: stops what runs, and the program goes on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress


class CtrlC:
    """Where SIGINT goes: to what runs and may be stopped, else to `on_idle`."""

    def __init__(self, on_idle: Callable[[], None]) -> None:
        self._on_idle = on_idle
        self._running: asyncio.Task[object] | None = None
        self._is_pressed = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Have SIGINT come here, whoever had it before; it goes back to Python, not to them."""
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError):  # Windows: asyncio's own handling of Ctrl-C has to do
            loop.add_signal_handler(signal.SIGINT, self._press)
        try:
            yield
        finally:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(signal.SIGINT)

    async def stoppable(self, work: Awaitable[None]) -> bool:
        """Wait for work to end or to be stopped by Ctrl-C; whether it came to its end.

        Whoever else cancels the task is obeyed, as `asyncio.timeout` does.
        """
        task = asyncio.current_task()
        assert task is not None, "only tasks wait"
        self._running, self._is_pressed = task, False
        try:
            await work
        except asyncio.CancelledError:
            if not self._is_pressed:
                raise
        finally:
            self._running = None
        # what was stopped may have ended by an error of its own, which is no reason to stay cancelled
        if self._is_pressed and task.uncancel() > 0:
            raise asyncio.CancelledError
        return not self._is_pressed

    def _press(self) -> None:
        if self._running is None:
            self._on_idle()
        elif not self._is_pressed:  # the second one would cancel what the first one ends in order
            self._is_pressed = True
            self._running.cancel()
