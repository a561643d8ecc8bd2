from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from protocol.errors import InternalError
from worker.loop_reply import LoopReplies, LoopReply


@pytest.fixture
async def replies() -> LoopReplies:
    return LoopReplies(asyncio.get_running_loop())


async def test_a_result_comes_from_another_thread(replies: LoopReplies) -> None:
    reply = replies.new()
    await asyncio.to_thread(reply.resolve, 5)
    assert await reply.future == 5


async def test_an_error_comes_from_another_thread(replies: LoopReplies) -> None:
    reply = replies.new()
    await asyncio.to_thread(reply.fail, InternalError("broken"))
    with pytest.raises(InternalError, match="broken"):
        await reply.future


async def test_the_first_result_counts_and_nobody_may_be_waiting(replies: LoopReplies) -> None:
    reply = replies.new()
    reply.future.cancel()
    assert reply.is_cancelled()
    reply.resolve(1)
    reply.fail(InternalError("late"))
    await asyncio.sleep(0)
    assert reply.future.cancelled()


async def test_results_that_come_at_once_are_there_at_once(replies: LoopReplies) -> None:
    several = [replies.new() for _ in range(3)]
    several[0].resolve(0)
    several[1].fail(InternalError("broken"))
    several[2].resolve(2)
    assert await several[0].future == 0
    assert [reply.future.done() for reply in several] == [True] * 3


async def test_what_comes_while_others_are_handed_over_is_not_forgotten(replies: LoopReplies) -> None:
    n_each = 500

    def answer(own: Sequence[LoopReply]) -> None:
        for number, reply in enumerate(own):
            reply.resolve(number)

    shares = [[replies.new() for _ in range(n_each)] for _ in range(3)]
    async with asyncio.timeout(10):
        await asyncio.gather(*(asyncio.to_thread(answer, share) for share in shares))
        for share in shares:
            assert [await reply.future for reply in share] == list(range(n_each))
