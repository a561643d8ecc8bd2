from __future__ import annotations

import asyncio
import gc

import pytest

from protocol.background import uninterrupted


async def failing(error: Exception) -> None:
    raise error


async def test_a_step_is_done_to_its_end_and_then_the_cancellation_goes_on() -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        await go_on.wait()
        done.set()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(uninterrupted(step()), name="step")
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        await asyncio.wait([task])
    assert done.is_set()
    assert task.cancelled()


async def test_a_second_cancellation_does_not_leave_a_step_behind() -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        await go_on.wait()
        done.set()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(uninterrupted(step()), name="step")
        await begun.wait()
        for _ in range(3):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done()
        go_on.set()
        await asyncio.wait([task])
        assert done.is_set()
    assert task.cancelled()


async def test_what_a_step_returns_and_raises_comes_through() -> None:
    assert await uninterrupted(asyncio.sleep(0, "result")) == "result"
    with pytest.raises(KeyError):
        await uninterrupted(failing(KeyError("mine")))


async def test_what_an_interrupted_step_raises_is_told_to_nobody_but_the_log() -> None:
    """Else the loop would log it whole when it is forgotten, with all that it says."""
    begun, told = asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))

    async def step() -> None:
        begun.set()
        await asyncio.sleep(0)
        raise KeyError("mine")

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(uninterrupted(step()), name="step")
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert told == []
