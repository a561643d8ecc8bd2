from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from client.gateway.merging import MAX_AT_ONCE, MAX_READY, collected, merged
from protocol.errors import HopLostError


async def counting(n: int, *, then: Exception | None = None) -> AsyncGenerator[int, None]:
    for number in range(n):
        yield number
    if then is not None:
        raise then


async def test_all_events_of_all_sources_come_in_their_order() -> None:
    n_sources = 2 * MAX_AT_ONCE
    assert await collected([counting(MAX_READY + 9) for _ in range(n_sources)]) == (
        [list(range(MAX_READY + 9))] * n_sources
    )


async def test_what_came_before_a_failure_is_given_first_and_the_others_end() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[int, None]:
        try:
            await asyncio.Event().wait()
            yield 0
        finally:
            ended.set()

    async with merged([counting(2, then=HopLostError("gone")), endless()]) as together:
        assert await together.batch(5.0) == [(0, 0), (0, 1)]
        with pytest.raises(HopLostError, match="gone"):
            await together.batch(5.0)
    assert ended.is_set()


async def test_a_source_that_says_nothing_is_an_empty_batch_and_nobody_makes_more_than_there_is_room_for() -> None:
    go_on, made = asyncio.Event(), []

    async def eager() -> AsyncGenerator[int, None]:
        await go_on.wait()
        for number in range(2 * MAX_READY):
            made.append(number)
            yield number

    async with merged([eager()]) as together:
        assert await together.batch(0.0) == []
        go_on.set()
        first = await together.batch(5.0)
        assert first is not None
        await asyncio.sleep(0)
        assert len(made) <= len(first) + MAX_READY
