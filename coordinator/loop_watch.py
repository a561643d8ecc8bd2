"""Who held the event loop: all that the coordinator does waits meanwhile, and no request's own times say why.

A thread sees that the loop doesn't come round, and what its thread is doing then; the loop itself tells it
afterwards. That costs a few dozen short wake-ups a second.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

HELD_S = 0.1
"""Held for longer, it is told."""
LOOK_S = 0.05
TOLD_EVERY_S = 10.0
"""At most one line of the log in so long; it counts the others."""
N_CALLERS = 4
NOBODY = "nothing of ours: other programs had the machine, or it was stopped"
_WAITING = frozenset({"asyncio", "selectors", "uvloop"})
"""Packages whose code is where a loop with nothing to do is."""


class LoopWatch:
    """Tells of each time that the loop it runs in was held."""

    def __init__(self, *, held_s: float = HELD_S) -> None:
        self._held_s = held_s
        self._due_s = 0.0
        """When the loop is to come round next."""
        self._seen: Counter[str] = Counter()
        self._told_s = -TOLD_EVERY_S
        self._n_untold = 0

    async def watch_forever(self) -> None:
        """Watch until cancelled."""
        with self._looking():
            while True:
                self._due_s = time.perf_counter() + LOOK_S
                await asyncio.sleep(LOOK_S)
                late_s = time.perf_counter() - self._due_s
                if late_s > self._held_s:
                    self._tell(late_s)
                self._seen.clear()

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """The thread that looks at this one."""
        is_over = threading.Event()
        own_id = threading.get_ident()

        def look() -> None:
            while not is_over.wait(LOOK_S):
                if time.perf_counter() - self._due_s > self._held_s / 2:
                    self._seen[_doing(sys._current_frames().get(own_id))] += 1  # noqa: SLF001 - its only name

        self._due_s = time.perf_counter() + LOOK_S
        threading.Thread(target=look, name="loop-watch", daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def _tell(self, late_s: float) -> None:
        if time.perf_counter() - self._told_s < TOLD_EVERY_S:
            self._n_untold += 1
            return
        by = self._seen.most_common(1)[0][0] if self._seen else "unknown"
        log.warning("event_loop_held", seconds=round(late_s, 3), by=by, n_untold=self._n_untold)
        self._told_s, self._n_untold = time.perf_counter(), 0


def _doing(frame: FrameType | None) -> str:
    """The functions that a thread is in, the innermost first."""
    if frame is None or _module(frame).partition(".")[0] in _WAITING:
        return NOBODY
    names: list[str] = []
    while frame is not None and len(names) < N_CALLERS:
        names.append(f"{_module(frame)}.{frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(names)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?"))
