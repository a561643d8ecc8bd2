from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

import pytest

from client.terminal.ctrl_c import CtrlC

WITHIN_S = 20.0


async def test_ctrl_c_stops_what_runs_once_and_is_passed_on_while_nothing_does() -> None:
    idle, ended_in_order = asyncio.Event(), False
    ctrl_c = CtrlC(idle.set)

    async def work() -> None:
        nonlocal ended_in_order
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            signal.raise_signal(signal.SIGINT)  # an impatient one doesn't cut short what is ended in order
            await asyncio.sleep(0.01)
            ended_in_order = True

    with ctrl_c.handled():
        async with asyncio.timeout(WITHIN_S):
            assert not await ctrl_c.stoppable(work())
            assert ended_in_order
            assert not idle.is_set()
            assert await ctrl_c.stoppable(asyncio.sleep(0))
            signal.raise_signal(signal.SIGINT)
            await idle.wait()
    assert not asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


async def test_what_is_stopped_and_ends_otherwise_leaves_nothing_of_it() -> None:
    ctrl_c = CtrlC(lambda: None)

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        with suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()

    task = asyncio.current_task()
    assert task is not None
    with ctrl_c.handled():
        async with asyncio.timeout(WITHIN_S):
            for _ in range(2):
                assert not await ctrl_c.stoppable(work())
                assert task.cancelling() == 0


async def test_whoever_else_cancels_is_obeyed() -> None:
    ctrl_c = CtrlC(lambda: None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await ctrl_c.stoppable(asyncio.sleep(WITHIN_S))
