from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from protocol.running_beside import running_beside


async def forever(stopped: asyncio.Event) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        stopped.set()


async def failing(error: Exception) -> None:
    raise error


async def used(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    async with running_beside(first=first, second=second):
        await asyncio.Event().wait()


async def test_loops_end_with_the_context() -> None:
    first, second = asyncio.Event(), asyncio.Event()
    async with running_beside(first=forever(first), second=forever(second)):
        await asyncio.sleep(0)
        assert not first.is_set()
    assert first.is_set()
    assert second.is_set()


async def test_a_loop_that_fails_takes_the_rest_down_with_its_own_error() -> None:
    stopped = asyncio.Event()
    async with asyncio.timeout(5):
        with pytest.raises(KeyError, match="mine"):
            await used(forever(stopped), failing(KeyError("mine")))
    assert stopped.is_set()


async def test_two_errors_come_out_as_a_group() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await used(failing(KeyError("a")), failing(ValueError("b")))
    assert len(caught.value.exceptions) == 2
