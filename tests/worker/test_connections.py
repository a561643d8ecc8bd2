from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from protocol.errors import HopLostError, OverloadedError
from protocol.frames import Frame, decode_frame, encode_frame
from protocol.ids import SessionId
from protocol.messages import CloseSession, Credit, Token
from tests.support.ring import WAIT_S, eventually
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


class Side:
    """The listening side: a `Connection`, and what it took."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.frames: list[Frame] = []
        self.ended = asyncio.Event()

    def take(self, frame: Frame) -> None:
        if frame.payload == b"bug":
            raise RuntimeError("a defect")
        self.frames.append(frame)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(timeout=0.2)
        await socket.prepare(request)
        self.connection = Connection(socket, peer=None, label="the other")
        try:
            await self.connection.run(self.take)
        finally:
            self.ended.set()
        return socket


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Side, aiohttp.ClientWebSocketResponse, Connection]]:
    side = Side()
    app = web.Application()
    app.router.add_get("/", side.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/") as socket,
        ):
            await eventually(lambda: side.connection is not None and side.connection._reader is not None)
            assert side.connection is not None
            yield side, socket, side.connection
    finally:
        await runner.cleanup()


async def test_messages_arrive_in_order_whatever_way_they_were_sent() -> None:
    async with connected() as (_side, socket, connection):
        big = bytes(MAX_DIRECT_BYTES + 1)
        connection.post(Credit(session_id=SESSION, n_steps=1))
        await connection.send(Credit(session_id=SESSION, n_steps=2))
        await connection.send(Credit(session_id=SESSION, n_steps=3), big)
        await connection.send(Credit(session_id=SESSION, n_steps=4))
        async with asyncio.timeout(WAIT_S):
            frames = [decode_frame(await socket.receive_bytes()) for _ in range(4)]
        assert [frame.message.n_steps for frame in frames] == [1, 2, 3, 4]  # type: ignore[union-attr]
        assert [len(frame.payload) for frame in frames] == [0, 0, len(big), 0]


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
