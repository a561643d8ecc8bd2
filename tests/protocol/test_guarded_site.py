from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from protocol.guarded_site import GuardedSite, _GuardedConnection
from protocol.listening import check_can_listen
from tests.support.open_files import is_cut

WHAT_TO_DO = (
    f"aiohttp {aiohttp.__version__} keeps its queue of requests otherwise: without `_messages` and "
    "`_current_request`, `guarded_site` can't tell who reads a body that it has broken, so that such a request is "
    "answered only when its reader's deadline is over. Look in aiohttp/web_protocol.py at what `data_received` "
    "does with an HttpProcessingError, and change `_broken_body`; if readers are told now, delete `data_received` "
    "there and see that tests/coordinator/test_middleware.py::test_a_body_that_breaks_is_answered_at_once passes."
)


def test_aiohttp_has_the_private_names_that_a_broken_body_is_found_by() -> None:
    assert {"_messages", "_current_request"} <= set(web.RequestHandler.__slots__), WHAT_TO_DO
    names = web.RequestHandler.__init__.__code__.co_names
    assert {"_messages", "_current_request", "deque"} <= set(names), WHAT_TO_DO


@pytest.mark.parametrize(
    "renamed",
    [
        SimpleNamespace(),
        SimpleNamespace(_messages=None),
        SimpleNamespace(_messages=[("message", "body")]),
        SimpleNamespace(_messages=deque()),
        SimpleNamespace(_messages=deque([("an error", None)])),
        SimpleNamespace(_messages=deque([("an error", None)]), _current_request=None),
        SimpleNamespace(_messages=deque([("an error", None)]), _current_request=SimpleNamespace()),
        SimpleNamespace(_messages=deque([("a request", None), ("an error", None)])),
    ],
    ids=str,
)
def test_where_aiohttp_names_them_otherwise_a_broken_body_is_left_to_its_reader(renamed: Any) -> None:
    """Nobody's connection ends in a traceback for it."""
    assert _GuardedConnection._broken_body(renamed) is None


async def made(port: int) -> GuardedSite:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    return GuardedSite(runner, None, host="127.0.0.1", port=port)


async def test_a_start_that_is_cancelled_at_any_moment_listens_no_more(own_port: int) -> None:
    n_turns, is_begun = 0, False
    while not is_begun:
        site = await made(own_port)
        is_begun = not await is_cut(site.start(), n_turns)
        await site.close()
        check_can_listen("127.0.0.1", own_port, option="--listen")
        n_turns += 1
    assert n_turns > 2


@pytest.mark.parametrize("n_turns", range(1, 6))
async def test_a_close_that_is_cancelled_twice_still_ends_the_connections(own_port: int, n_turns: int) -> None:
    site = await made(own_port)
    await site.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", own_port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await is_cut(site.close(), n_turns, n_times=2)
    assert not site._connections
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
