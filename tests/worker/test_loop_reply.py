from __future__ import annotations

import asyncio

import pytest

from protocol.errors import InternalError
from worker.loop_reply import LoopReply


async def test_a_result_comes_from_another_thread() -> None:
    reply = LoopReply(asyncio.get_running_loop())
    await asyncio.to_thread(reply.resolve, 5)
    assert await reply.future == 5


async def test_an_error_comes_from_another_thread() -> None:
    reply = LoopReply(asyncio.get_running_loop())
    await asyncio.to_thread(reply.fail, InternalError("broken"))
    with pytest.raises(InternalError, match="broken"):
        await reply.future


async def test_the_first_result_counts_and_nobody_may_be_waiting() -> None:
    reply = LoopReply(asyncio.get_running_loop())
    reply.future.cancel()
    assert reply.is_cancelled()
    reply.resolve(1)
    reply.fail(InternalError("late"))
    await asyncio.sleep(0)
    assert reply.future.cancelled()
