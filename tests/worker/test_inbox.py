from __future__ import annotations

import asyncio

import pytest

from worker.inbox import Inbox


async def test_items_come_out_in_order_and_a_waiting_reader_is_woken() -> None:
    inbox: Inbox[int] = Inbox()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(inbox.get())
        await asyncio.sleep(0)
        inbox.put(1)
        inbox.put(2)
        assert await reading == 1
        assert await inbox.get() == 2


async def test_a_cancelled_reader_loses_nothing() -> None:
    inbox: Inbox[int] = Inbox()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await inbox.get()
    inbox.put(3)
    assert await inbox.get() == 3
