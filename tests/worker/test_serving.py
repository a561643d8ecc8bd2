from __future__ import annotations

import asyncio

from protocol.exit_codes import EXIT_CANCELLED
from worker.app import Departure
from worker.serving import Stop


async def test_a_start_that_does_not_end_when_it_is_given_up_ends_at_the_second_signal() -> None:
    given_up, go_on = asyncio.Event(), asyncio.Event()

    async def start() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.set()
            await go_on.wait()

    ends: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        stop = Stop(tasks.create_task(start(), name="start"), ends.append)
        await asyncio.sleep(0)
        stop.on_signal()
        await given_up.wait()
        assert ends == []
        stop.on_signal()
        assert ends == [EXIT_CANCELLED]
        go_on.set()


def test_a_worker_leaves_then_hurries_and_then_ends_as_it_is() -> None:
    departure, ends = Departure(), list[int]()
    stop = Stop(None, ends.append)
    stop.joined(departure.ask, departure.hurry)
    stop.on_signal()
    assert (departure.asked.is_set(), departure.is_urgent.is_set()) == (True, False)
    stop.on_signal()
    assert (departure.is_urgent.is_set(), ends) == (True, [])
    stop.on_signal()
    assert ends == [EXIT_CANCELLED]
