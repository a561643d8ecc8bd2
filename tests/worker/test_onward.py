"""Sending on, over a real WebSocket."""

from __future__ import annotations

import asyncio

import pytest
import torch
from aiohttp import web

from protocol.errors import ProtocolError
from protocol.ids import SessionId
from protocol.messages import STEP_CREDIT, Step
from protocol.tensors import tensor_from_bytes
from tests.support.ring import WAIT_S
from tests.support.socket_pair import connected, frames_from
from worker.history import History
from worker.onward import Onward

STATES = torch.arange(12, dtype=torch.float32).reshape(6, 2)


async def steps_of(socket: web.WebSocketResponse, n_steps: int) -> list[tuple[int, int, bool]]:
    """Position, tokens and whether it is the last, of so many steps, whose rows are as they should be."""
    found = []
    async with asyncio.timeout(WAIT_S):
        for frame in await frames_from(socket, n_steps):
            step = frame.message
            assert isinstance(step, Step)
            rows = tensor_from_bytes(frame.payload, step.dtype, (step.n_tokens, 2))
            assert torch.equal(rows, STATES[step.position : step.position + step.n_tokens])
            found.append((step.position, step.n_tokens, step.is_last))
    return found


async def test_credit_bounds_what_is_sent() -> None:
    async with connected() as (_side, socket, connection):
        history = History()
        onward = Onward(SessionId("s"), connection, history)
        for position in range(4):
            await onward.send(position, STATES[position : position + 1], is_last=False)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(onward.send(4, STATES[4:], is_last=True))
            await asyncio.sleep(0)
            assert not waiting.done()
            onward.add_credit(1)
        assert history.n_states == 6
        assert await steps_of(socket, 5) == [*((i, 1, False) for i in range(4)), (4, 2, True)]


async def test_who_takes_small_steps_gets_small_ones() -> None:
    async with connected() as (_side, socket, connection):
        onward = Onward(SessionId("s"), connection, History(), most_bytes=2 * STATES[0].nbytes + 1)
        await onward.send(0, STATES, is_last=True)
        assert await steps_of(socket, 3) == [(0, 2, False), (2, 2, False), (4, 2, True)]


@pytest.mark.parametrize(
    ("n_there", "new_from", "expected"),
    [
        (0, None, [(0, 2, False), (2, 2, False), (4, 2, True)]),
        (1, None, [(1, 1, False), (2, 2, False), (4, 2, True)]),
        (3, None, [(3, 1, False), (4, 2, True)]),
        (5, None, [(5, 1, True)]),
        (9, None, [(5, 1, True)]),
        (5, 1, [(1, 1, False), (2, 2, False), (4, 2, True)]),
    ],
    ids=["has nothing", "has less", "has more", "has all but the last", "has more than all", "of another text"],
)
async def test_the_next_hop_gets_what_it_lacks(
    n_there: int, new_from: int | None, expected: list[tuple[int, int, bool]]
) -> None:
    async with connected() as (_side, socket, connection):
        history = History()
        history.add_states(STATES[:2])
        onward = Onward(SessionId("s"), connection, history, is_resumed=True)
        if new_from is not None:
            onward.send_from(new_from)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(onward.send(2, STATES[2:4], is_last=False))
            await asyncio.sleep(0)
            assert not waiting.done(), "what the next hop has isn't known yet"
            onward.opened(n_there)
            onward.opened(99)  # said once
        await onward.send(4, STATES[4:], is_last=True)
        assert await steps_of(socket, len(expected)) == expected
        assert history.n_states == 6


async def test_credit_beyond_what_was_sent_is_refused() -> None:
    async with connected() as (_side, _socket, connection):
        onward = Onward(SessionId("s"), connection, History())
        with pytest.raises(ProtocolError, match=f"credit for {STEP_CREDIT + 1} steps"):
            onward.add_credit(1)
