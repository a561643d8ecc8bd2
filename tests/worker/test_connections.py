from __future__ import annotations

import asyncio

import aiohttp
import pytest

from protocol.errors import HopLostError, OverloadedError
from protocol.frames import MAX_JOINED_BYTES, decode_frame, decode_frames, encode_frame
from protocol.ids import SessionId, WorkerId
from protocol.messages import PROTOCOL_VERSION, CloseSession, Credit, Token
from tests.support.ring import WAIT_S
from tests.support.socket_pair import connected, frames_from
from tests.support.waiting import eventually
from worker.connections import MAX_DIRECT_BYTES, MAX_QUEUED_MESSAGES, MAX_QUEUED_TOKENS, Connection

SESSION = SessionId("s")
CLOSE = CloseSession(session_id=SESSION, reason="failed")
TOKEN = Token(session_id=SESSION, index=0, token_id=1)


class User:
    """Counts how often it hears of its connection's end."""

    def __init__(self) -> None:
        self.n_lost = 0

    def connection_lost(self, connection: Connection) -> None:
        assert connection.is_closed
        self.n_lost += 1


async def test_messages_arrive_in_order_whatever_way_they_were_sent() -> None:
    async with connected() as (_side, socket, connection):
        big = bytes(MAX_DIRECT_BYTES + 1)
        connection.post(Credit(session_id=SESSION, n_steps=1))
        await connection.send(Credit(session_id=SESSION, n_steps=2))
        await connection.send(Credit(session_id=SESSION, n_steps=3), big)
        await connection.send(Credit(session_id=SESSION, n_steps=4))
        async with asyncio.timeout(WAIT_S):
            frames = await frames_from(socket, 4)
        assert [frame.message.n_steps for frame in frames] == [1, 2, 3, 4]  # type: ignore[union-attr]
        assert [len(frame.payload) for frame in frames] == [0, 0, len(big), 0]


async def test_steps_of_several_sessions_go_as_one_message_to_who_knows_such() -> None:
    for version, n_messages in ((PROTOCOL_VERSION, 1), ("1.1", 3)):
        async with connected(version=version) as (_side, socket, connection):
            connection.add_user(SESSION, User())
            connection.add_user(SessionId("other"), User())
            for n_steps in (1, 2, 3):
                await connection.send(Credit(session_id=SESSION, n_steps=n_steps), b"payload")
            async with asyncio.timeout(WAIT_S):
                came = [decode_frames(await socket.receive_bytes()) for _ in range(n_messages)]
        frames = [frame for message in came for frame in message]
        assert [frame.message.n_steps for frame in frames] == [1, 2, 3]  # type: ignore[union-attr]
        assert {bytes(frame.payload) for frame in frames} == {b"payload"}


async def test_a_session_alone_waits_for_nobody_and_no_message_is_larger_than_joined_ones_may_be() -> None:
    async with connected() as (_side, socket, connection):
        connection.add_user(SESSION, User())
        for n_steps in (1, 2):
            await connection.send(Credit(session_id=SESSION, n_steps=n_steps))
        sizes = [100, MAX_JOINED_BYTES, 10, MAX_JOINED_BYTES - 300, 20]
        for size in sizes:
            connection.add_user(SessionId(f"other {size}"), User())
            await connection.send(Credit(session_id=SESSION, n_steps=3), bytes(size))
        async with asyncio.timeout(WAIT_S):
            came = [decode_frames(await socket.receive_bytes()) for _ in range(5)]
        payloads = [[len(frame.payload) for frame in message] for message in came]
        assert payloads == [[0], [0], [100], [MAX_JOINED_BYTES], [10, MAX_JOINED_BYTES - 300, 20]]


async def test_joined_frames_are_taken_in_order_and_none_after_the_connection_was_given_up() -> None:
    joined = b"".join(encode_frame(Credit(session_id=SESSION, n_steps=n)) for n in (1, 2, 3))
    async with connected() as (side, socket, connection):
        await socket.send_bytes(joined)
        await eventually(lambda: len(side.frames) == 3)
        assert [frame.message.n_steps for frame in side.frames] == [1, 2, 3]  # type: ignore[union-attr]
        side.on_frame = connection.abort
        await socket.send_bytes(joined)
        async with asyncio.timeout(WAIT_S):
            await side.ended.wait()
        assert len(side.frames) == 4


async def test_a_slow_reader_of_tokens_is_told_by_an_error_and_can_still_be_told_the_end() -> None:
    async with connected() as (_side, _socket, connection):
        for _ in range(MAX_QUEUED_TOKENS):
            connection.post(TOKEN)
        with pytest.raises(OverloadedError, match="1024 tokens wait"):
            connection.post(TOKEN)
        connection.post(CLOSE)
        assert not connection.is_closed


async def test_who_reads_nothing_at_all_is_cut_off() -> None:
    async with connected() as (side, _socket, connection):
        user = User()
        connection.add_user(SESSION, user)
        for _ in range(MAX_QUEUED_MESSAGES + 2):
            connection.post(CLOSE)
        async with asyncio.timeout(WAIT_S):
            await side.ended.wait()
        assert user.n_lost == 1


async def test_users_hear_once_that_the_peer_closed_and_later_sends_fail() -> None:
    async with connected() as (side, socket, connection):
        user = User()
        connection.add_user(SESSION, user)
        await socket.close()
        async with asyncio.timeout(WAIT_S):
            await side.ended.wait()
        connection.abort()
        connection.post(TOKEN)
        assert user.n_lost == 1
        with pytest.raises(HopLostError):
            await connection.send(CLOSE)
        with pytest.raises(HopLostError):
            connection.add_user(SESSION, user)


async def test_who_sends_while_the_connection_breaks_hears_of_it_as_all_its_users_do() -> None:
    async with connected() as (side, _socket, connection):
        user = User()
        connection.add_user(SESSION, user)
        transport = connection._socket._req.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.abort()  # it is closing at once; the reader hears of it in a later turn of the loop
        await connection.send(CLOSE)
        assert user.n_lost == 0
        async with asyncio.timeout(WAIT_S):
            await side.ended.wait()
        assert user.n_lost == 1


async def test_a_connection_is_idle_when_nobody_has_used_it_for_a_while() -> None:
    async with connected() as (_side, _socket, connection):
        now = asyncio.get_running_loop().time()
        assert connection.is_idle(now + 10, 5)
        connection.add_user(SESSION, User())
        assert not connection.is_idle(now + 10, 5)
        connection.remove_user(SESSION)
        assert not connection.is_idle(asyncio.get_running_loop().time(), 5)


async def test_what_is_no_frame_closes_the_connection() -> None:
    async with connected() as (side, socket, _connection):
        await socket.send_bytes(b"no frame")
        message = await socket.receive(WAIT_S)
        assert message.data == aiohttp.WSCloseCode.PROTOCOL_ERROR
        assert side.frames == []


async def test_a_defect_in_handling_a_frame_ends_that_connection_only() -> None:
    async with connected() as (side, socket, _connection):
        await socket.send_bytes(encode_frame(CLOSE, b"bug"))
        assert (await socket.receive(WAIT_S)).data == aiohttp.WSCloseCode.INTERNAL_ERROR
        async with asyncio.timeout(WAIT_S):
            await side.ended.wait()


async def test_everything_posted_is_written_when_it_says_so() -> None:
    async with connected() as (_side, socket, connection):
        for _ in range(10):
            connection.post(TOKEN)
        async with asyncio.timeout(WAIT_S):
            await connection.written()
            assert len(await frames_from(socket, 10)) == 10
            connection.abort()
            await connection.written()


async def test_round_trips_are_measured_and_smoothed_at_either_end() -> None:
    async with connected() as (side, socket, _connection):
        other = Connection(socket, peer=None, label="measuring")
        socket._autoping = False  # as `worker.peers` opens it
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(other.run(side.take))
            await eventually(lambda: other._reader is not None)
            assert other.meter.round_trip_s is None
            other.measure()
            await eventually(lambda: other.meter.round_trip_s is not None)
            assert other.meter.round_trip_s is not None
            first_s, other.meter.round_trip_s = other.meter.round_trip_s, 100.0
            assert 0 < first_s < WAIT_S
            other.measure()
            await eventually(lambda: other.meter.round_trip_s != 100.0)
            assert 80.0 < other.meter.round_trip_s < 90.0
            assert side.connection is not None
            await side.connection._socket.ping(b"hello")  # answered, though nothing does that by itself
            other.measure()
            await eventually(lambda: not other.meter.is_pinging)
            other.abort()
            await running
            other.measure()


async def test_an_older_peer_is_told_nothing_that_it_doesnt_know() -> None:
    async with connected() as (_side, socket, connection):
        closing = CloseSession(session_id=SESSION, reason="failed", worker_id=WorkerId("w-to-blame"))
        for version, expected in (("1.1", closing), ("1.0", CLOSE), ("1.3", closing)):
            connection.version = version
            connection.post(closing)
            async with asyncio.timeout(WAIT_S):
                assert decode_frame(await socket.receive_bytes()).message == expected
