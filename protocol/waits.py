"""Waiting for one of several things, with a deadline and nothing left running."""

from __future__ import annotations

import asyncio


async def until_set(*events: asyncio.Event, timeout_s: float) -> None:
    """Wait until one of the events is set, at most so long."""
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(event.wait(), name="until-set") for event in events]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
