"""What keeps the event loop's work whole: steps that no cancellation cuts, a heap that isn't looked through."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

_FROZEN_FOR_GOOD = threading.Event()
"""Whether `freeze_heap` was called. Python would have to count what is frozen: 0.2 s for torch and transformers."""


def freeze_heap() -> None:
    """Have the garbage collector pass over what there is by now: looking at it all stops the loop for 0.1 s."""
    gc.collect()
    gc.freeze()
    _FROZEN_FOR_GOOD.set()


@contextmanager
def garbage_collected_at_end() -> Iterator[None]:
    """Free the cycles that come of what is done within, looking through nothing that was there before.

    All threads stand still while a heap is looked through: with torch and transformers in it for 0.2 s of the
    processor's time, which are many seconds where others want the processor too.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if not _FROZEN_FOR_GOOD.is_set():
            gc.unfreeze()


async def uninterrupted(step: Awaitable[T], cut: Callable[[], None] = lambda: None) -> T:
    """Run `step` to its end even if the caller is cancelled meanwhile; the cancellation goes on after it.

    For writes: a transaction that is cut in two leaves the database locked, and nobody knows what is in it. The
    step must have deadlines of its own, or an end that is brought about in another way: by `cut`, which is called
    when the caller is cancelled.
    """
    task = asyncio.ensure_future(step)  # noqa: TID251 - awaited right here, whatever happens
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cut()
        # However often it is cancelled: what the caller holds is held until the step is done.
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("interrupted_step_failed", error=type(error).__name__)  # who would be told is gone
        raise
