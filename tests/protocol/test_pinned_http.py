from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from msgspec import structs

from coordinator.authority import Authority
from coordinator.state_folder import StateFolder
from protocol.api_key import ApiKey, new_api_key
from protocol.codec import encode_json
from protocol.errors import (
    BrigadeError,
    InternalError,
    ModelUnavailableError,
    ProtocolVersionError,
    TooLargeError,
    UnauthenticatedError,
    UnreachableError,
)
from protocol.ids import CoordinatorId, KeyId, ModelName, SessionId
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyList
from protocol.messages import PROTOCOL_VERSION
from protocol.pinned_http import pinned_session
from protocol.rest import ErrorAnswer, Hello, RouteRequest
from protocol.tls import server_context

UNAVAILABLE = ModelUnavailableError("blocks 3:5 of tiny are missing", retry_after_s=2.5)
NO_ADMINS = CreatedKey(key_id=KeyId("k"), key="secret")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(StateFolder(tmp_path_factory.mktemp("state")), now=datetime.now(UTC))


@pytest.fixture
def key(authority: Authority) -> ApiKey:
    return new_api_key("admin", authority.ca_fingerprint)


class Peer:
    """Answers as a coordinator does; a test changes what it says."""

    def __init__(self, authority: Authority) -> None:
        self.ca = authority.ca_pem
        self.ca_answer: web.Response | None = None
        """Instead of it, if there is one."""
        self.version = PROTOCOL_VERSION
        self.seen: list[tuple[str, str, str, bytes]] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.Response:
        authorization = request.headers.get("Authorization", "")
        self.seen.append((request.method, request.path, authorization, await request.read()))
        match request.path:
            case "/v1/ca":
                return self.ca_answer or web.Response(text=self.ca)
            case "/v1/hello":
                hello = Hello(protocol_version=self.version, coordinator_id=CoordinatorId("c-1"), time_s=0.0)
                return web.Response(body=encode_json(hello))
            case "/keys":
                return web.Response(body=encode_json(KeyList(keys=()) if request.method == "GET" else NO_ADMINS))
            case "/unavailable":
                return web.Response(status=503, body=encode_json(ErrorAnswer(error=UNAVAILABLE.body())))
            case "/bytes":
                return web.Response(body=b"x" * 1000)
            case "/elsewhere":
                raise web.HTTPFound("https://other.example/")
            case _:
                return web.Response(status=502, text="<html>Bad gateway</html>")


@asynccontextmanager
async def served(peer: Peer, certificate: Authority | None) -> AsyncIterator[str]:
    """The peer's URL; without a certificate it speaks plain HTTP."""
    context = None
    if certificate is not None:
        context = server_context(certificate.server_certificate, certificate.server_key)
    runner = web.AppRunner(peer.app())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def refused(url: str, key: ApiKey) -> BrigadeError:
    with pytest.raises(BrigadeError) as caught:
        async with pinned_session(url, key):
            pass
    assert key.secret not in str(caught.value)
    return caught.value


async def test_requests_go_out_with_the_key_and_answers_are_decoded(authority: Authority, key: ApiKey) -> None:
    peer = Peer(authority)
    async with served(peer, authority) as url, pinned_session(url + "/", key) as session:
        assert session.url == url
        assert session.ca_pem.strip() == authority.ca_pem.strip()
        assert await session.get("/keys", KeyList) == KeyList(keys=())
        request = CreateKeyRequest(name="n")
        assert await session.post("/keys", request, CreatedKey) == NO_ADMINS
        assert await session.post("/keys", None, CreatedKey) == NO_ADMINS
        assert await session.delete("/keys", CreatedKey) == NO_ADMINS
        assert await session.get_bytes("/bytes") == b"x" * 1000
    assert peer.seen[0] == ("GET", "/v1/ca", "", b"")
    assert all(authorization == f"Bearer {key.text()}" for _, _, authorization, _ in peer.seen[1:])
    assert peer.seen[3][3] == encode_json(request)


async def test_errors_come_back_as_what_they_are(authority: Authority, key: ApiKey) -> None:
    async with served(Peer(authority), authority) as url, pinned_session(url, key) as session:
        with pytest.raises(ModelUnavailableError, match="blocks 3:5") as caught:
            await session.get("/unavailable", KeyList)
        assert caught.value.retry_after_s == 2.5
        with pytest.raises(UnreachableError, match="HTTP status 502"):
            await session.get("/proxy", KeyList)
        with pytest.raises(UnreachableError, match="HTTP status 302"):
            await session.get("/elsewhere", KeyList)
        with pytest.raises(InternalError, match="can't read"):
            await session.get("/bytes", KeyList)
        with pytest.raises(TooLargeError, match="more than 999 bytes"):
            await session.get_bytes("/bytes", max_bytes=999)


async def test_another_clusters_coordinator_never_sees_the_key(authority: Authority, tmp_path: Path) -> None:
    peer = Peer(authority)
    other = Authority(StateFolder(tmp_path), now=datetime.now(UTC))
    async with served(peer, authority) as url:
        error = await refused(url, new_api_key("client", other.ca_fingerprint))
    assert isinstance(error, UnauthenticatedError)
    assert "another cluster" in str(error)
    assert [path for _, path, _, _ in peer.seen] == ["/v1/ca"]


async def test_a_relay_that_shows_the_right_ca_but_has_no_certificate_of_it_sees_no_key(
    authority: Authority, key: ApiKey, tmp_path: Path
) -> None:
    peer = Peer(authority)
    other = Authority(StateFolder(tmp_path), now=datetime.now(UTC))
    async with served(peer, other) as url:
        error = await refused(url, key)
    assert isinstance(error, UnauthenticatedError)
    assert [path for _, path, _, _ in peer.seen] == ["/v1/ca"]


async def test_a_second_ca_behind_the_pinned_one_is_not_trusted(
    authority: Authority, key: ApiKey, tmp_path: Path
) -> None:
    other = Authority(StateFolder(tmp_path), now=datetime.now(UTC))
    for ca in (authority.ca_pem + other.ca_pem, other.ca_pem + authority.ca_pem):
        peer = Peer(authority)
        peer.ca = ca
        async with served(peer, other) as url:
            assert isinstance(await refused(url, key), (UnauthenticatedError, UnreachableError))
        assert [path for _, path, _, _ in peer.seen] == ["/v1/ca"]


async def test_another_protocol_version(authority: Authority, key: ApiKey) -> None:
    peer = Peer(authority)
    peer.version = "2.0"
    async with served(peer, authority) as url:
        assert isinstance(await refused(url, key), ProtocolVersionError)


async def test_an_older_coordinator_is_asked_in_its_own_version_until_a_newer_one_is_back(
    authority: Authority, key: ApiKey
) -> None:
    peer = Peer(authority)
    peer.version = "1.0"
    asked = RouteRequest(model=ModelName("m"), n_prompt_tokens=1, max_tokens=2)
    newer = structs.replace(asked, continues=SessionId("s"), wait_s=3.0)
    async with served(peer, authority) as url, pinned_session(url, key) as session:
        for version in ("1.0", PROTOCOL_VERSION):
            peer.version = version
            await session.post("/keys", newer, CreatedKey)
            with pytest.raises(UnreachableError):
                await session.get("/proxy", KeyList)
        await session.post("/keys", newer, CreatedKey)
    bodies = [body for method, _, _, body in peer.seen if method == "POST"]
    assert bodies == [encode_json(asked), encode_json(newer), encode_json(newer)]


async def test_what_an_older_coordinator_would_pass_over_is_not_asked(authority: Authority, key: ApiKey) -> None:
    peer = Peer(authority)
    peer.version = "1.1"
    asked = RouteRequest(model=ModelName("m"), n_prompt_tokens=1, max_tokens=2, pinned_ends=True)
    async with served(peer, authority) as url, pinned_session(url, key) as session:
        with pytest.raises(ProtocolVersionError, match=r"1\.1, which knows nothing of pinned_ends"):
            await session.post("/keys", asked, CreatedKey, needed=["pinned_ends"])
    assert not [method for method, _, _, _ in peer.seen if method == "POST"]


@pytest.mark.parametrize("ca", ["", "<html>", "x" * 20_000, ssl.DER_cert_to_PEM_cert(b"nonsense")])
async def test_something_else_answers(authority: Authority, key: ApiKey, ca: str) -> None:
    peer = Peer(authority)
    peer.ca = ca
    async with served(peer, authority) as url:
        assert isinstance(await refused(url, key), (UnreachableError, UnauthenticatedError, TooLargeError))


async def test_a_coordinator_that_takes_no_more_connections_says_so_at_first_contact(
    authority: Authority, key: ApiKey
) -> None:
    peer = Peer(authority)
    peer.ca_answer = web.Response(status=503, body=encode_json(ErrorAnswer(error=UNAVAILABLE.body())))
    async with served(peer, authority) as url:
        error = await refused(url, key)
    assert (error.code, error.message) == (UNAVAILABLE.code, UNAVAILABLE.message)


async def test_a_plain_http_server(authority: Authority, key: ApiKey) -> None:
    async with served(Peer(authority), None) as url:
        assert isinstance(await refused(url, key), UnreachableError)


async def test_nobody_listens(key: ApiKey) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{unused.getsockname()[1]}"
        error = await refused(url, key)
    assert isinstance(error, UnreachableError)
    assert url in str(error)


async def test_several_addresses_are_tried_in_their_order_and_the_one_that_answers_is_kept(
    authority: Authority, key: ApiKey
) -> None:
    first, second = Peer(authority), Peer(authority)
    nobody = "https://127.0.0.1:1"
    async with served(second, authority) as second_url:
        async with (
            served(first, authority) as first_url,
            pinned_session(f"{nobody},{first_url},{second_url}", key) as session,
        ):
            assert session.url == first_url
            await session.get("/keys", KeyList)
            assert second.seen == []
        async with served(first, authority) as first_url:
            pinned = pinned_session(f"{first_url},{second_url}", key)
            session = await pinned.__aenter__()
        try:
            assert await session.get("/keys", KeyList) == KeyList(keys=())
            assert (session.url, len(second.seen)) == (second_url, 1)
            with pytest.raises(ModelUnavailableError):
                await session.get("/unavailable", KeyList)
            assert session.url == second_url
        finally:
            await pinned.__aexit__(None, None, None)


async def test_none_of_several_addresses_answers(key: ApiKey) -> None:
    error = await refused("https://127.0.0.1:1,https://127.0.0.1:2", key)
    assert isinstance(error, UnreachableError)
    assert "none of the coordinator's 2 addresses answers" in error.message
    assert "https://127.0.0.1:1 " in error.message
    assert "https://127.0.0.1:2 " in error.message


async def test_an_address_of_another_cluster_is_an_error_though_others_follow(
    authority: Authority, key: ApiKey, tmp_path: Path
) -> None:
    other = Authority(StateFolder(tmp_path), now=datetime.now(UTC))
    stranger, peer = Peer(other), Peer(authority)
    async with served(stranger, other) as stranger_url, served(peer, authority) as url:
        assert isinstance(await refused(f"{stranger_url},{url}", key), UnauthenticatedError)
    assert [path for _, path, _, _ in stranger.seen] == ["/v1/ca"]


async def test_a_server_that_never_answers(key: ApiKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.pinned_http.CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as silent:  # the system accepts, and nobody ever reads
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = await refused(f"https://127.0.0.1:{silent.getsockname()[1]}", key)
    assert isinstance(error, UnreachableError)
    assert "in time" in str(error)
