"""Work beside the caller's own: loops as long as a context is open, and steps that no cancellation cuts."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def running_beside(**loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `loops`, named as they are given, until the context closes. An error in one cancels what is inside.

    Raises:
        BaseException: what a loop raised, as itself if it is the only one: it has its own exit code.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop, name=name) for name, loop in loops.items()]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def freeze_heap() -> None:
    """Have the garbage collector pass over what there is by now: looking at it all stops the loop for 0.1 s."""
    gc.collect()
    gc.freeze()


async def uninterrupted(step: Coroutine[Any, Any, T]) -> T:
    """Run `step` to its end even if the caller is cancelled meanwhile; the cancellation goes on after it.

    For writes: a transaction that is cut in two leaves the database locked, and nobody knows what is in it. The
    step must have deadlines of its own.
    """
    task = asyncio.ensure_future(step)  # noqa: TID251 - awaited right here, whatever happens
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        # However often it is cancelled: what the caller holds is held until the step is done.
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise
