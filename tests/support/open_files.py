"""Threads of which a test knows what they were given, and whether this process holds a file open."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

_MAX_JOBS = 16


class WatchedThreads(ThreadPoolExecutor):
    """The first job begins when `may_begin` is set."""

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads)
        self.given = [asyncio.Event() for _ in range(_MAX_JOBS)]
        """By job, in the order in which they came."""
        self.jobs: list[Future[Any]] = []
        self.may_begin = threading.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        is_first = not self.jobs

        def run() -> Any:
            assert not is_first or self.may_begin.wait(20)
            return fn(*args, **kwargs)

        self.jobs.append(super().submit(run))
        self.given[len(self.jobs) - 1].set()
        return self.jobs[-1]


def is_open(path: Path) -> bool:
    """Does this process hold the file open?"""
    wanted = path.stat()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # the one that lists them is gone by now
            if os.path.samestat(os.fstat(int(name)), wanted):
                return True
    return False
