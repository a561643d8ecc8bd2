from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref

import pytest

from protocol.background import freeze_heap, garbage_collected_at_end, uninterrupted
from tests.support.program import ROOT


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


async def test_a_step_that_waits_for_ever_is_cut_when_its_caller_is_cancelled_and_only_then() -> None:
    begun, cut, told = asyncio.Event(), asyncio.Event(), []

    async def step() -> None:
        begun.set()
        await cut.wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(uninterrupted(step(), cut.set), name="step")
        await begun.wait()
        assert not cut.is_set()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert await uninterrupted(asyncio.sleep(0, "result"), lambda: told.append("cut")) == "result"
    with pytest.raises(KeyError):
        await uninterrupted(failing(KeyError("mine")), lambda: told.append("cut"))
    assert told == []


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


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_cycles_made_within_are_freed_and_what_was_there_is_not_looked_through() -> None:
    looked_through: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            looked_through.append(len(gc.get_objects()))

    was_there = [[] for _ in range(100_000)]
    gc.callbacks.append(note)
    try:
        with garbage_collected_at_end():
            lost = weakref.ref(Cycle())
    finally:
        gc.callbacks.remove(note)
    assert lost() is None
    assert max(looked_through) < len(was_there)


def test_nothing_more_is_frozen_afterwards() -> None:
    """Python 3.12 begins with some objects frozen; taken for ours, whatever a worker loads would stay so."""
    program = (
        "import gc\n"
        "from protocol.background import garbage_collected_at_end\n"
        "n_before = gc.get_freeze_count()\n"
        "with garbage_collected_at_end(): pass\n"
        "assert gc.get_freeze_count() <= n_before, gc.get_freeze_count()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_was_frozen_for_good_stays_so() -> None:
    freeze_heap()
    with pytest.raises(ValueError, match="within"), garbage_collected_at_end():
        raise ValueError("within")
    assert gc.get_freeze_count() > 0


def test_what_is_frozen_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python walks through all of it to count it: with torch and transformers loaded, for 0.2 s at every load."""
    freeze_heap()
    monkeypatch.delattr(gc, "get_freeze_count")
    with garbage_collected_at_end():
        pass
