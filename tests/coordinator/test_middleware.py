"""What surrounds every request: JSON errors, limits, Host, headers, and nothing of ours in an answer."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from coordinator.app import RunningCoordinator
from coordinator.keys import ACCESS, KNOWN_NAMES
from coordinator.middleware import (
    BODY_TIMEOUT_S,
    add_route,
    add_security_headers,
    answer_errors,
    check_caller,
    read_body,
)
from protocol.codec import MAX_BODY_BYTES
from protocol.errors import OverloadedError
from protocol.guarded_site import GuardedSite
from protocol.rest import ErrorAnswer
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.waiting import eventually


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def test_text_that_no_database_takes_is_refused_before_one_sees_it(tmp_path: Path, database_url: str) -> None:
    """PostgreSQL fails a whole transaction by a NUL character, and routes of several clients share one."""
    route = {"model": "m", "n_prompt_tokens": 3, "max_tokens": 3}
    async with (
        running_coordinator(tmp_path, database_url=database_url) as running,
        http_session(running, key_of(running, "admin")) as http,
    ):
        for method, path, body in (
            ("GET", "/admin/v1/keys/%00", None),
            ("GET", "/admin/v1/audit?who=%00", None),
            ("POST", "/admin/v1/keys", {"name": "a\0b"}),
            ("POST", "/v1/routes", route | {"continues": "x\0y"}),
            ("POST", "/v1/routes", route | {"continues": "x", "failure": {"code": "hop\0lost"}}),
        ):
            answer = await http.ask(method, path, None if body is None else json.dumps(body))
            assert (answer.status, "NUL" in answer.read(ErrorAnswer).error.message) == (400, True), path
        assert (await http.ask("POST", "/admin/v1/keys", json.dumps({"name": r"a\u0000"}))).status == 201


@pytest.fixture
async def failing() -> AsyncIterator[TestClient]:
    """An application whose handlers fail."""

    async def broken(_request: web.Request) -> web.Response:
        raise RuntimeError("the password is hunter2")

    async def full(_request: web.Request) -> web.Response:
        raise OverloadedError("full", retry_after_s=1.2)

    async def teapot(_request: web.Request) -> web.Response:
        raise web.HTTPUnsupportedMediaType

    app = web.Application(middlewares=[answer_errors, check_caller])
    access: dict[web.AbstractRoute, object] = {}
    app[ACCESS] = access  # type: ignore[misc]
    app[KNOWN_NAMES] = frozenset({"localhost"})
    add_route(app, "open", "GET", "/broken", broken)
    add_route(app, "open", "GET", "/full", full)
    add_route(app, "open", "GET", "/teapot", teapot)
    app.router.add_get("/unsaid", full)
    app.on_response_prepare.append(add_security_headers)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_an_unknown_path_is_a_json_error(http: Http) -> None:
    answer = await http.ask("GET", "/nothing/here")
    assert answer.status == 404
    assert answer.read(ErrorAnswer).error.code == "not_found"


async def test_a_wrong_method_is_a_json_error_that_says_which_are_right(http: Http) -> None:
    answer = await http.ask("DELETE", "/v1/models")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET"
    assert "GET" in answer.read(ErrorAnswer).error.message


@pytest.mark.parametrize("path", ["/v1/hello", "/v1/models", "/nothing", "/v1/files/" + "0" * 64])
async def test_every_answer_has_the_security_headers_and_no_cors(http: Http, path: str) -> None:
    answer = await http.ask("GET", path, headers={"Origin": "https://evil.example"})
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Server"] == "brigade"
    assert len(answer.headers["Brigade-Request-Id"]) == 16
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_another_host_name_is_refused_before_the_key_is_looked_at(http: Http) -> None:
    answer = await http.ask("GET", "/admin/v1/status", headers={"Host": "evil.example"})
    assert answer.status == 403
    assert answer.read(ErrorAnswer).error.code == "forbidden"


async def test_two_requests_have_two_ids_whatever_the_caller_sends(http: Http) -> None:
    first, second = [
        (await http.ask("GET", "/v1/hello", headers={"Brigade-Request-Id": "mine"})).headers for _ in range(2)
    ]
    assert len({"mine", first["Brigade-Request-Id"], second["Brigade-Request-Id"]}) == 3


async def test_a_body_over_the_limit_is_refused(http: Http) -> None:
    answer = await http.ask("POST", "/v1/routes", io.BytesIO(b"x" * (MAX_BODY_BYTES + 1)))
    assert answer.status == 413
    assert answer.read(ErrorAnswer).error.code == "too_large"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"name": 3}', b'{"name": "a", "more": 1}', b"[" * 5000],
)
async def test_a_body_that_is_no_request_is_refused_with_the_reason(http: Http, body: bytes) -> None:
    answer = await http.ask("POST", "/admin/v1/keys", body)
    assert answer.status == 400
    assert "CreateKeyRequest" in answer.read(ErrorAnswer).error.message


async def test_forms_and_compressed_bodies_are_refused(http: Http) -> None:
    body = b'{"name": "a"}'
    for headers in ({"Content-Type": "text/plain"}, {"Content-Encoding": "deflate"}):
        answer = await http.ask("POST", "/admin/v1/keys", body, headers=headers)
        assert answer.status == 400, headers


async def test_a_defect_is_answered_without_its_details(failing: TestClient) -> None:
    response = await failing.get("/broken", headers={"Host": "localhost"})
    text = await response.text()
    assert response.status == 500
    assert json.loads(text)["error"]["code"] == "internal"
    assert "hunter2" not in text
    assert "RuntimeError" not in text


async def test_retry_after_is_in_whole_seconds_and_never_too_short(failing: TestClient) -> None:
    response = await failing.get("/full", headers={"Host": "localhost"})
    assert (response.status, response.headers["Retry-After"]) == (503, "2")
    assert (await response.json())["error"]["retry_after_s"] == 1.2


async def test_what_the_library_raises_is_json_too(failing: TestClient) -> None:
    response = await failing.get("/teapot", headers={"Host": "localhost"})
    assert response.status == 415
    assert (await response.json())["error"]["code"] == "invalid_request"


async def test_a_route_that_does_not_say_who_may_use_it_answers_nobody(failing: TestClient) -> None:
    response = await failing.get("/unsaid", headers={"Host": "localhost"})
    assert response.status == 500


async def test_plain_http_gets_nothing(coordinator: RunningCoordinator) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", coordinator.port)
    writer.write(b"GET /v1/hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(10):
        assert b"HTTP" not in await reader.read()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("piece", [b"zz\r\n", b"5\r\nabcdeXX\r\n"])
@pytest.mark.parametrize("when", ["in one piece", "before it is read", "while it is read"])
async def test_a_body_that_breaks_is_answered_at_once(
    piece: bytes, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and the connection ends with it: where a next request would begin nobody knows. No fault of ours."""
    begun = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    is_reading = asyncio.Event()

    async def reads(request: web.Request) -> web.Response:
        is_reading.set()
        return web.Response(body=await read_body(request))

    app = web.Application(middlewares=[answer_errors])
    app.router.add_post("/", reads)
    runner = web.AppRunner(app)
    await runner.setup()
    site = GuardedSite(runner, None, host="127.0.0.1", port=0)
    await site.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        await eventually(lambda: bool(site._connections))
        (connection,) = site._connections
        if when == "in one piece":
            connection.data_received(begun + piece)
        else:
            connection.data_received(begun)
            if when == "while it is read":
                await is_reading.wait()
            connection.data_received(piece)
        async with asyncio.timeout(BODY_TIMEOUT_S / 3):
            answer = await reader.read()
        assert (answer.split()[1], answer.count(b"HTTP/1.")) == (b"400", 1)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        writer.transport.abort()
    finally:
        await runner.cleanup()
