"""A worker that joins and serves until it is told to stop, and says so line by line."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

from protocol.event_loops import signals_handled
from protocol.exit_codes import EXIT_CANCELLED
from protocol.listening import raise_open_files_limit
from protocol.service_manager import tell_service_manager
from worker.app import running
from worker.config import WorkerConfig
from worker.enrolment import Credentials
from worker.told import say


async def serve_until_stopped(
    config: WorkerConfig, credentials: Credentials | None = None, *, has_state: bool = False
) -> None:
    """Join and serve until SIGINT or SIGTERM, and tell people and the service manager how it goes.

    `credentials`: those of an enrolment a moment ago. `has_state`: whether the caller holds the state folder.
    """
    raise_open_files_limit()
    stop = Stop(asyncio.current_task())
    with signals_handled(stop.on_signal, signal.SIGINT, signal.SIGTERM):
        async with running(config, tell=say, credentials=credentials, has_state=has_state) as worker:
            stop.joined(worker.departure.ask, worker.departure.hurry)
            say(f"joined; {worker.holdings.reason}")
            tell_service_manager("READY=1")
            await worker.departure.asked.wait()
            tell_service_manager("STOPPING=1")
            say(f"leaving: {worker.departure.reason}")
    say("left")


class Stop:
    """What a signal does: before the worker has joined, give up; then drain; then, the second time, don't wait.

    Once more, and the process ends as it is: something hangs, or whoever asks won't wait.
    """

    def __init__(self, task: asyncio.Task[Any] | None, end: Callable[[int], object] = os._exit) -> None:
        self._task = task
        self._end = end
        self._ask: Callable[[str], None] | None = None
        self._hurry: Callable[[], None] | None = None
        self._n_signals = 0

    def joined(self, ask: Callable[[str], None], hurry: Callable[[], None]) -> None:
        """From now on a signal asks the worker to leave, and the next one to hurry."""
        self._ask, self._hurry = ask, hurry

    def on_signal(self) -> None:
        """One more."""
        self._n_signals += 1
        if self._ask is None or self._hurry is None:
            if self._n_signals > 1:
                self._end(EXIT_CANCELLED)
            elif self._task is not None:
                self._task.cancel()
        elif self._n_signals == 1:
            self._ask("the worker was stopped")
        elif self._n_signals == 2:
            self._hurry()
        else:
            self._end(EXIT_CANCELLED)
