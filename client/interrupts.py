"""Ctrl-C and SIGTERM as cancellation of the task that runs, so that everything is ended in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Interruption:
    """Which signal came, if one did."""

    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """As shells count: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.signal_number or signal.SIGINT)


@contextmanager
def cancelled_by_signals() -> Iterator[Interruption]:
    """Let the first signal cancel the current task. A second one ends the program as it would any other."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    interruption = Interruption()

    def interrupt(number: int) -> None:
        interruption.signal_number = number
        _remove_handlers(loop)
        if task is not None:
            task.cancel()

    with suppress(NotImplementedError):  # Windows: asyncio's own handling of Ctrl-C has to do
        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupt, number)
    try:
        yield interruption
    finally:
        _remove_handlers(loop)


def _remove_handlers(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(NotImplementedError):
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
