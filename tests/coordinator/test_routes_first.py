"""Reports let routes go before them, but not for ever; nobody who gives up keeps the turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from coordinator.routes_first import RoutesFirst

FOR_EVER_S = 600.0


async def passes() -> None:
    """All that can run now has run."""
    for _ in range(20):
        await asyncio.sleep(0)


class Turns:
    """Two routes and reports that want the same turn; who had it, in order."""

    def __init__(self, longest_s: float) -> None:
        self.turn = RoutesFirst(longest_s)
        self.had: list[str] = []
        self.goes_on = asyncio.Event()

    async def routes(self, name: str) -> None:
        with self.turn.coming():
            async with self.turn.of_routes():
                self.had.append(name)
                await self.goes_on.wait()

    async def reports(self) -> None:
        async with self.turn.of_reports():
            self.had.append("reports")


async def test_a_route_that_comes_after_reports_goes_before_them() -> None:
    turns = Turns(FOR_EVER_S)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for wants in (turns.routes("first"), turns.reports(), turns.routes("second")):
            tasks.create_task(wants)
            await passes()
        assert turns.had == ["first"]
        turns.goes_on.set()
    assert turns.had == ["first", "second", "reports"]


async def test_reports_dont_wait_longer_than_they_may() -> None:
    turns = Turns(0.0)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        with turns.turn.coming():  # and so it stays
            await turns.reports()
        tasks.create_task(turns.routes("first"))
        await passes()
        with pytest.raises(TimeoutError):  # the turn itself they do wait for
            async with asyncio.timeout(0.01):
                await turns.reports()
        turns.goes_on.set()
    assert turns.had == ["reports", "first"]


@pytest.mark.parametrize("who", [lambda turns: turns.routes("second"), Turns.reports])
async def test_who_gives_up_is_in_nobodys_way(who: Callable[[Turns], Coroutine[None, None, None]]) -> None:
    turns = Turns(FOR_EVER_S)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(turns.routes("first"))
        await passes()
        gives_up = tasks.create_task(who(turns))
        await passes()
        gives_up.cancel()
        await asyncio.wait([gives_up])
        turns.goes_on.set()
        await turns.reports()
    assert turns.had == ["first", "reports"]
