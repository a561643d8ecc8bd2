from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from protocol.errors import InternalError, NotFoundError
from protocol.traced_requests import SPANS, answered_in_span
from protocol.tracing import new_trace

DEADLINE_S = 30.0


class Noted:
    """A sink that keeps what it is told of the one request, and says when."""

    def __init__(self) -> None:
        self.ended_once = asyncio.Event()
        self.status: Any = None
        self.error_code: str | None = None

    def ended(self, _name: str, _trace: Any, *, attributes: Any, error_code: str | None = None, **_: Any) -> None:
        self.status, self.error_code = attributes["http.response.status_code"], error_code
        self.ended_once.set()


async def span_of(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], *, goes_away: bool) -> Noted:
    noted, came = Noted(), asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        came.set()
        return await answered_in_span(request, handler, new_trace(), cause=None)

    app = web.Application()
    app[SPANS] = noted
    app.router.add_get("/", handle)
    async with (
        asyncio.timeout(DEADLINE_S),
        TestServer(app, handler_cancellation=True) as server,
        aiohttp.ClientSession() as http,
        asyncio.TaskGroup() as tasks,
    ):
        asking = tasks.create_task(http.get(server.make_url("/")))
        await came.wait()
        if goes_away:
            asking.cancel()
        await noted.ended_once.wait()
    return noted


async def test_who_went_away_is_no_error_of_the_server() -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    noted = await span_of(never, goes_away=True)
    assert (noted.status, noted.error_code) == (499, None)


@pytest.mark.parametrize(
    ("error", "status", "code"), [(NotFoundError("no"), 404, None), (InternalError("no"), 500, "500")]
)
async def test_a_span_has_the_status_of_what_was_raised(error: Exception, status: int, code: str | None) -> None:
    async def fails(_: web.Request) -> web.StreamResponse:
        raise error

    noted = await span_of(fails, goes_away=False)
    assert (noted.status, noted.error_code) == (status, code)
