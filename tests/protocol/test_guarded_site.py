from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from protocol.guarded_site import _GuardedConnection

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
