"""Class 10. Defences: own names only, credentials in one header only, JSON only, no CORS, loopback unless told."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.serving import exposure
from protocol.guarded_site import SECURITY_HEADERS
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.listening import worker_door
from tests.support.raw_http import door_of, status_of

STRANGE = (
    "evil.example",
    "evil.example:7400",
    "localhost.evil.example",
    "127.0.0.1.nip.example",
    "evil.example@127.0.0.1",
    "127.0.0.1/evil.example",
    "127.0.0.1#evil.example",
    "127.0.0.1, evil.example",
    "0x7f.1",
    "[::1",
    "",
)
OURS = ("127.0.0.1", "127.0.0.1:7400", "LocalHost", "localhost.:7400", "[::1]:1", "10.1.2.3", "known.example")
WRITES = (
    ("POST", "/admin/v1/keys"),
    ("DELETE", "/admin/v1/models/tiny"),
    ("POST", "/admin/v1/workers/w-x/drain"),
    ("POST", "/v1/routes"),
)
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain;charset=UTF-8")


async def test_a_page_whose_name_was_pointed_at_the_coordinator_gets_nothing(tmp_path: Path) -> None:
    """Fails if the Host header isn't checked, is taken apart too kindly, or the target's host isn't looked at."""
    async with running_coordinator(tmp_path, public_url="https://known.example") as coordinator:
        door = door_of(coordinator)
        for host in STRANGE:
            assert status_of(await door.say("GET /v1/hello HTTP/1.1", f"Host: {host}")) == 403, host
        for host in OURS:
            assert status_of(await door.say("GET /v1/hello HTTP/1.1", f"Host: {host}")) == 200, host
        for target in ("https://evil.example/v1/hello", "https://127.0.0.1@evil.example/v1/hello"):
            assert status_of(await door.say(f"GET {target} HTTP/1.1", "Host: 127.0.0.1")) == 403, target
        two = await door.say("GET /v1/hello HTTP/1.1", "Host: 127.0.0.1", "Host: evil.example")
        assert status_of(two) == 400


async def test_a_worker_answers_to_its_own_names_only(tmp_path: Path) -> None:
    """Fails if `check_names` is taken out of a worker's application, or its headers."""
    async with worker_door(tmp_path, names=frozenset({"localhost", "known.example"})) as (door, _, _):
        for host in STRANGE:
            assert status_of(await door.say("GET /v1/data HTTP/1.1", f"Host: {host}")) == 403, host
        answers = [await door.say("GET /v1/data HTTP/1.1", f"Host: {host}") for host in OURS]
        assert {status_of(answer) for answer in answers} == {404}
        for name, value in SECURITY_HEADERS.items():
            assert f"{name}: {value}".encode() in answers[0]


async def test_no_origin_is_allowed_anything(tmp_path: Path) -> None:
    """Fails if a CORS header is ever sent."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for path in ("/v1/hello", "/v1/routes", "/admin/v1/keys", "/nothing"):
            for method in ("OPTIONS", "GET", "POST"):
                answer = await http.ask(method, path, headers=asks)
                assert not [name for name in answer.headers if name.lower().startswith("access-control")]
                assert answer.status != 204, "a preflight is no success"
                assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
                assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


async def test_what_a_page_can_send_without_asking_changes_nothing(tmp_path: Path) -> None:
    """Fails if a credential is taken from where browsers put it, or a body as browsers send it."""
    async with running_coordinator(tmp_path) as coordinator:
        key = key_of(coordinator, "admin")
        async with http_session(coordinator) as http:
            for method, path in WRITES:
                elsewhere = (
                    {"Cookie": f"key={key}; Authorization=Bearer {key}"},
                    {"Authorization": f"Basic {key}"},
                )
                for headers in elsewhere:
                    assert (await http.ask(method, path, b"{}", headers=headers)).status == 401, (path, headers)
                assert (await http.ask(method, f"{path}?api_key={key}&access_token={key}", b"{}")).status == 401
        async with http_session(coordinator, key) as http:
            for form in FORMS:
                answer = await http.ask("POST", "/admin/v1/keys", b'{"name": "a"}', headers={"Content-Type": form})
                assert answer.status in (400, 415), form


async def test_it_listens_on_loopback_unless_told_otherwise_and_then_says_so(tmp_path: Path) -> None:
    """Fails if the default opens the coordinator to the network, or nothing is said when an option does."""
    assert CoordinatorConfig.from_env({}, state=tmp_path).listen_host == "127.0.0.1"
    assert exposure("127.0.0.1") is exposure("::1") is exposure("localhost") is None
    for host in ("0.0.0.0", "::", "10.0.0.5"):
        assert "warning" in (exposure(host) or ""), host


@pytest.mark.parametrize("path", ["/v1/hello", "/v1/files/" + "0" * 64, "/v1/worker/control", "/nothing"])
async def test_every_answer_has_the_security_headers(tmp_path: Path, path: str) -> None:
    """Fails if some kind of answer is made without them."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        answer = await http.ask("GET", path)
        assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
