"""Sending on, over a real WebSocket."""

from __future__ import annotations

import asyncio

import pytest
import torch

from protocol.errors import ProtocolError
from protocol.frames import Frame, decode_frame
from protocol.ids import SessionId
from protocol.messages import STEP_CREDIT, Step
from protocol.tensors import tensor_from_bytes
from tests.support.ring import WAIT_S
from tests.support.socket_pair import connected
from worker.history import History
from worker.onward import Onward

STATES = torch.arange(12, dtype=torch.float32).reshape(6, 2)


async def test_what_was_sent_can_be_sent_again_and_credit_bounds_both() -> None:
    async with connected() as (_side, socket, connection):
        history = History()
        onward = Onward(SessionId("s"), connection, history)
        for position in range(3):
            await onward.send(position, STATES[position : position + 1], is_last=False)
        assert history.n_states == 3
        await onward.send_again(1, 2)
        assert history.n_states == 3
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(onward.send(3, STATES[3:], is_last=True))
            await asyncio.sleep(0)
            assert not waiting.done()
            onward.add_credit(1)
        frames: list[Frame] = []
        async with asyncio.timeout(WAIT_S):
            while len(frames) < 5:
                frames.append(decode_frame(await socket.receive_bytes()))
        found = []
        for frame in frames:
            step = frame.message
            assert isinstance(step, Step)
            rows = tensor_from_bytes(frame.payload, step.dtype, (step.n_tokens, 2))
            assert torch.equal(rows, STATES[step.position : step.position + step.n_tokens])
            found.append((step.position, step.n_tokens, step.is_last))
        assert found == [(0, 1, False), (1, 1, False), (2, 1, False), (1, 2, False), (3, 3, True)]


async def test_credit_beyond_what_was_sent_is_refused() -> None:
    async with connected() as (_side, _socket, connection):
        onward = Onward(SessionId("s"), connection, History())
        with pytest.raises(ProtocolError, match=f"credit for {STEP_CREDIT + 1} steps"):
            onward.add_credit(1)
