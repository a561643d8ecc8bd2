from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler, Middleware

from client.config import ClientConfig
from client.gateway.config import GatewayConfig
from client.gateway.gate import Gate
from client.gateway.keys import CONFIG, GATE
from client.gateway.openai_chat import error_event
from client.gateway.streams import PIECE_BYTES, send_in_pieces, streamed
from protocol.api_key import new_api_key

LONG = b"x" * (3 * PIECE_BYTES + 1)


async def broken() -> AsyncGenerator[bytes, None]:
    yield b"begun "
    raise KeyError("a defect")


async def stream(request: web.Request) -> web.StreamResponse:
    return await streamed(request, broken(), error_event=error_event, headers={})


async def whole(_request: web.Request) -> web.Response:
    return web.Response(body=LONG, status=201, headers={"X-Kept": "yes"})


async def huge(_request: web.Request) -> web.Response:
    """So long that no buffer of any system holds it."""
    return web.Response(body=b"x" * 2**26)


def application(*around: Middleware, stalled_s: float = 60.0) -> web.Application:
    app = web.Application(middlewares=[*around, send_in_pieces])
    own = ClientConfig(url="https://127.0.0.1:1", api_key=new_api_key("client", "0" * 64), cache=Path("unused"))
    app[CONFIG] = GatewayConfig(cluster=own, stalled_s=stalled_s)
    app[GATE] = Gate()
    app.router.add_get("/stream", stream)
    app.router.add_get("/whole", whole)
    app.router.add_get("/huge", huge)
    return app


async def test_a_defect_amid_a_stream_is_said_in_it() -> None:
    async with (
        TestServer(application()) as server,
        aiohttp.ClientSession() as http,
        http.get(server.make_url("/stream")) as response,
    ):
        body = await response.read()
    assert body.startswith(b'begun data: {"error":')
    assert b"server_error" in body
    assert b"a defect" not in body


async def test_an_answer_in_pieces_is_the_same_answer() -> None:
    async with TestServer(application()) as server, aiohttp.ClientSession() as http:
        async with http.get(server.make_url("/whole")) as response:
            assert (response.status, response.headers["X-Kept"]) == (201, "yes")
            assert response.content_length == len(LONG)
            assert await response.read() == LONG
        async with http.head(server.make_url("/whole")) as response:
            assert (response.status, await response.read()) == (201, b"")


async def test_who_doesnt_read_a_whole_answer_is_given_up() -> None:
    is_over = asyncio.Event()

    @web.middleware
    async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        finally:
            is_over.set()

    loop, small = asyncio.get_running_loop(), socket.socket()
    async with TestServer(application(watch, stalled_s=0.3)) as server, asyncio.timeout(60):
        with small:
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            small.setblocking(False)
            await loop.sock_connect(small, ("127.0.0.1", server.port))
            await loop.sock_sendall(small, b"GET /huge HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await is_over.wait()
            n_read = 0
            with suppress(ConnectionError):
                while data := await loop.sock_recv(small, 2**20):
                    n_read += len(data)
    assert 0 < n_read < 2**26
