from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from coordinator.cut_loop import CutLoop

AT_MOST_S = 10.0


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_what_runs_is_cut_from_another_thread() -> None:
    loop, begun = CutLoop(), threading.Event()

    async def begin() -> None:
        begun.set()
        await for_ever()

    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(loop.run, begin())
        assert begun.wait(AT_MOST_S)
        loop.cut()
        with pytest.raises((CancelledError, asyncio.CancelledError)):
            run.result(AT_MOST_S)


def test_what_was_cut_before_it_runs_ends_at_its_first_wait() -> None:
    loop = CutLoop()
    loop.cut()
    with pytest.raises(asyncio.CancelledError):
        loop.run(asyncio.wait_for(for_ever(), AT_MOST_S))


def test_what_is_over_can_be_cut() -> None:
    loop, done = CutLoop(), []

    async def step() -> None:
        done.append("step")

    loop.run(step())
    loop.cut()
    assert done == ["step"]


def test_what_a_coroutine_raises_comes_through() -> None:
    async def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        CutLoop().run(fail())


def test_one_that_is_cut_again_and_again_as_it_begins_and_ends_always_ends() -> None:
    """Whichever comes first, one of both sees the other."""
    with ThreadPoolExecutor(2) as threads:
        for _ in range(100):
            loop = CutLoop()
            run = threads.submit(loop.run, for_ever())
            threads.submit(loop.cut).result(AT_MOST_S)
            with pytest.raises((CancelledError, asyncio.CancelledError)):
                run.result(AT_MOST_S)
