"""What a cancelled piece of work left behind: files that are open, objects that nobody closed, threads at work."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
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


async def is_cut(work: Coroutine[Any, Any, object], n_turns: int, *, n_times: int = 1) -> bool:
    """Cancel `work` after so many turns of the loop, as often, in turns that follow; whether that came in time."""
    task = asyncio.get_running_loop().create_task(work)
    for _ in range(n_turns):
        await asyncio.sleep(0)
    for _ in range(n_times):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """What is left for the garbage collector to close fails here, and not in a test that comes later."""
    gc.collect()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert _left_behind(told) == []


def collect_what_is_left() -> list[str]:
    """What the garbage collector closes now, which nobody closed, and coroutines that nobody awaited."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gc.collect()
    return _left_behind(told)


def _left_behind(told: list[warnings.WarningMessage]) -> list[str]:
    return [str(one.message) for one in told if issubclass(one.category, ResourceWarning | RuntimeWarning)]
