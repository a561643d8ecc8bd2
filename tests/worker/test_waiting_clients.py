from __future__ import annotations

import asyncio

import pytest

from protocol.errors import ConflictError
from protocol.ids import SessionId
from protocol.messages import SamplingParams
from tests.support.socket_pair import connected
from tests.support.waiting import eventually
from worker.connections import Connection
from worker.tail import Attachment
from worker.waiting_clients import WaitingClients

A, B = SessionId("a"), SessionId("b")


def attachment(connection: Connection) -> Attachment:
    return Attachment(connection=connection, sampling=SamplingParams(max_tokens=1), prompt_token_ids=(5,))


async def test_a_client_waits_once_and_is_taken_once() -> None:
    async with connected() as (_side, _socket, connection):
        waiting, one = WaitingClients(), attachment(connection)
        waiting.add(A, one, 10.0)
        with pytest.raises(ConflictError):
            waiting.add(A, attachment(connection), 10.0)
        assert len(waiting) == 1
        assert waiting.take(A) is one
        assert waiting.take(A) is None
        assert not connection.users


async def test_those_whose_time_is_over_are_given_back() -> None:
    async with connected() as (_side, _socket, connection):
        waiting = WaitingClients()
        waiting.add(A, attachment(connection), 10.0)
        waiting.add(B, attachment(connection), 11.0)
        assert [session_id for session_id, _ in waiting.take_expired(10.0)] == [A]
        assert set(connection.users) == {B}


async def test_only_who_waits_can_leave_and_a_lost_connection_does() -> None:
    async with connected() as (_, socket, connection), connected() as (_, _, other):
        waiting = WaitingClients()
        waiting.add(A, attachment(connection), 10.0)
        waiting.add(B, attachment(connection), 10.0)
        waiting.leave(A, other)
        assert len(waiting) == 2
        waiting.leave(A, connection)
        assert len(waiting) == 1
        async with asyncio.timeout(10):
            await socket.close()
        await eventually(lambda: len(waiting) == 0)
