from __future__ import annotations

import asyncio
import signal

import pytest

from client.interrupts import cancelled_by_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_cancels_the_task_and_is_told_apart(number: signal.Signals, code: int) -> None:
    async def interrupted() -> int:
        with cancelled_by_signals() as interruption:
            signal.raise_signal(number)
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                assert interruption.signal_number == number
                return interruption.exit_code
        return 0

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(interrupted())
    assert task.result() == code


async def test_handlers_are_gone_afterwards() -> None:
    with cancelled_by_signals() as interruption:
        assert interruption.signal_number is None
    loop = asyncio.get_running_loop()
    assert not loop.remove_signal_handler(signal.SIGINT)
    assert not loop.remove_signal_handler(signal.SIGTERM)
