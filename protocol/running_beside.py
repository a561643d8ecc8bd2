"""Loops that run beside the caller's own work, for as long as a context is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def running_beside(**loops: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.TaskGroup]:
    """Run `loops`, named as they are given, until the context closes. An error in one cancels what is inside.

    What else is begun in the group that is given is waited for at the end.

    Raises:
        BaseException: what a loop raised, as itself if it is the only one: it has its own exit code.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop, name=name) for name, loop in loops.items()]
            try:
                yield tasks
            finally:
                for task in running:
                    task.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
