"""What ports say that are no coordinator's: errors in our form, whoever raised them."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from structlog.testing import capture_logs

from protocol.guarded_application import guarded_application
from tests.support.waiting import eventually


@asynccontextmanager
async def _listening(method: str, path: str, handler: Handler) -> AsyncIterator[int]:
    """An application with one route; its port."""
    app = guarded_application(None, who="worker", option="--advertise")
    app.router.add_route(method, path, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _asked(method: str, path: str, *, body: bytes = b"") -> tuple[int, Any, Any]:
    """Status, headers and JSON of an answer of an application with one route."""

    async def read(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({})

    async with (
        _listening("POST", "/there", read) as port,
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}", data=io.BytesIO(body)) as answer,
    ):
        return answer.status, answer.headers, json.loads(await answer.read())


@pytest.mark.parametrize("path", ["/", "/nothing/here", "/v1/x?y=1"])
async def test_a_path_that_is_not_there_is_an_error_with_a_code(path: str) -> None:
    status, headers, body = await _asked("GET", path)
    assert (status, headers["Content-Type"]) == (404, "application/json")
    assert body["error"]["code"] == "not_found"
    assert body["error"]["message"] == f"there is nothing at {path.partition('?')[0]}"


async def test_a_method_that_is_not_possible_names_those_that_are() -> None:
    status, headers, body = await _asked("GET", "/there")
    assert (status, headers["Allow"]) == (405, "POST")
    assert body["error"]["code"] == "invalid_request"
    assert body["error"]["message"] == "GET isn't possible at /there; POST is"


async def test_what_else_the_http_library_refuses_has_a_code_too() -> None:
    status, _, body = await _asked("POST", "/there", body=bytes(5 * 2**20))
    assert status == 413
    assert body["error"]["code"] == "invalid_request"
    assert "the request can't be answered: " in body["error"]["message"]


async def test_who_goes_away_before_a_connection_is_upgraded_is_no_failure_of_ours() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def upgraded(request: web.Request) -> web.StreamResponse:
        came.set()
        await eventually(lambda: request.transport is None or request.transport.is_closing())
        socket = web.WebSocketResponse()
        try:
            await socket.prepare(request)
        finally:
            gone.set()
        return socket

    with capture_logs() as logs:
        async with _listening("GET", "/data", upgraded) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET /data HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            await came.wait()
            writer.transport.abort()
            await gone.wait()
    assert logs == []
