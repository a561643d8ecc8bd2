from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from client.gateway.app import running
from protocol.api_key import new_api_key
from protocol.errors import ConfigError, PortInUseError
from protocol.key_limits import KeyLimits
from tests.support.coordinators import bearer
from tests.support.gateways import ENDS, ServedGateway, gateway_config, served_gateway
from tests.support.pki import TestAuthority
from tests.support.waiting import eventually, eventually_answered

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 450,
    "logit_bias": ENDS,
}
SHORT = LONG | {"max_tokens": 2}


def raw_request(served: ServedGateway, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_is_left_of_a_client_that_goes_away(served: ServedGateway, stream: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.gateway.port)
    writer.write(raw_request(served, LONG | {"stream": stream, "n": 2}))
    await eventually(lambda: served.sessions_on_workers() == 4)
    writer.transport.abort()
    await eventually(lambda: served.sessions_on_workers() == 0 and served.gateway.gate.n_inside == 0)
    assert not await reader.read(0)


async def test_a_client_that_doesnt_read_is_given_up(served: ServedGateway) -> None:
    async with served_gateway(served.cluster, stalled_s=0.3) as slow:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", slow.gateway.port))
        # so many logarithms that no buffer of any system holds them
        body = LONG | {"stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
        await asyncio.get_running_loop().sock_sendall(small, raw_request(slow, body))
        await eventually(lambda: slow.sessions_on_workers() == 16)
        await eventually(lambda: slow.sessions_on_workers() == 0 and slow.gateway.gate.n_inside == 0, 80)
        small.close()


async def test_nothing_is_read_of_whoever_has_no_key(served: ServedGateway) -> None:
    """Though the body never comes, the answer does."""
    fingerprint = served.cluster.coordinator.authority.ca_fingerprint
    key = new_api_key("client", fingerprint).text()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.gateway.port)
    head = ["Host: 127.0.0.1", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    writer.write("\r\n".join([f"POST {CHAT} HTTP/1.1", *head, "Content-Length: 16000000", "", ""]).encode())
    async with asyncio.timeout(30):
        assert (await reader.readline()).split()[1] == b"401"
    writer.transport.abort()


@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_of_a_key_that_may_have_one_at_once_come_one_after_the_other(
    served: ServedGateway, stream: bool
) -> None:
    key = await served.cluster.new_key(KeyLimits(max_concurrent=1))

    async def answered() -> bytes | None:
        answer = await served.post(CHAT, SHORT | {"n": 3, "stream": stream}, headers=bearer(key.key))
        assert answer.status in (200, 429), answer.body  # the second may have been faster than the first
        return answer.body if answer.status == 200 else None

    body = await eventually_answered(answered)
    assert body.count(b'"finish_reason":"length"') == 3


async def test_whose_key_answers(served: ServedGateway) -> None:
    own_key = await served.post(CHAT, SHORT)  # on loopback
    assert own_key.status == 200
    n_clients = len(served.gateway.clients)
    placeholder = await served.post(CHAT, SHORT, headers=bearer("sk-nothing"))
    assert placeholder.status == 401
    error = placeholder.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
    assert "sk-nothing" not in placeholder.body.decode()
    fingerprint = served.cluster.coordinator.authority.ca_fingerprint
    strange = await served.post(CHAT, SHORT, headers=bearer(new_api_key("client", fingerprint).text()))
    assert (strange.status, strange.json()["error"]["code"]) == (401, "invalid_api_key")
    assert len(served.gateway.clients) == n_clients

    other = await served.cluster.new_key(KeyLimits(requests_per_min=1))
    assert (await served.post(CHAT, SHORT, headers=bearer(other.key))).status == 200
    refused = await served.post(CHAT, SHORT, headers=bearer(other.key))
    assert (refused.status, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    await served.cluster.admin("DELETE", f"/admin/v1/keys/{other.key_id}")
    assert (await served.post(CHAT, SHORT, headers=bearer(other.key))).status == 401


async def test_a_shared_key_answers_placeholders_and_an_unshared_one_nobody_from_elsewhere(
    served: ServedGateway,
) -> None:
    async with served_gateway(served.cluster, share_key=True, listen_host="0.0.0.0") as shared:
        assert (await shared.post(CHAT, SHORT, headers=bearer("ollama"))).status == 200
        assert (await shared.post(CHAT, SHORT)).status == 200
    async with served_gateway(served.cluster, listen_host="0.0.0.0") as closed:
        assert (await closed.post(CHAT, SHORT)).status == 401


async def test_pages_of_other_origins_are_refused_unless_allowed(served: ServedGateway) -> None:
    page = {"Origin": "https://evil.example"}
    refused = await served.post(CHAT, SHORT, headers=page)
    assert (refused.status, "Access-Control-Allow-Origin" in refused.headers) == (403, False)
    assert (await served.post(CHAT, SHORT, headers={"Host": "rebound.example"})).status == 403
    simple = {"Content-Type": "text/plain"}  # what a page may send without asking
    assert (await served.post(CHAT, json.dumps(SHORT).encode(), headers=simple)).status == 400

    async with served_gateway(served.cluster, allow_origins=("https://chat.example",)) as open_to:
        page = {"Origin": "https://chat.example"}
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = await open_to.ask("OPTIONS", CHAT, headers=page | asked)
        assert (preflight.status, preflight.headers["Access-Control-Allow-Headers"]) == (204, "authorization")
        answer = await open_to.post(CHAT, SHORT | {"stream": True}, headers=page)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://chat.example")
        assert (await open_to.post(CHAT, SHORT, headers={"Origin": "https://evil.example"})).status == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("GET", CHAT, None, 405),
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b"[]", 400),
        ("POST", CHAT, b"\xff", 400),
        ("POST", CHAT, b"[" * 100_000, 400),
        ("POST", CHAT, b" " * (2**24 + 1), 413),
    ],
)
async def test_errors_have_openais_shape(
    served: ServedGateway, method: str, path: str, body: bytes | None, status: int
) -> None:
    answer = await served.ask(method, path, body)
    assert answer.status == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_prompt_of_ten_megabytes_is_too_long_for_the_context(served: ServedGateway) -> None:
    messages = [{"role": "user", "content": "x " * 5_000_000}]
    answer = await served.post(CHAT, SHORT | {"messages": messages})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_at_the_stop_running_answers_end_and_new_ones_are_refused(served: ServedGateway) -> None:
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
        leaving = asyncio.Event()

        async def hold(started: asyncio.Future[ServedGateway]) -> None:
            async with served_gateway(served.cluster) as stopping:
                started.set_result(stopping)
                await leaving.wait()

        started: asyncio.Future[ServedGateway] = asyncio.get_running_loop().create_future()
        gateway = tasks.create_task(hold(started))
        stopping = await started
        url = stopping.gateway.url
        async with http.post(url + CHAT, json=LONG | {"stream": True, "max_tokens": 60}) as running_one:
            await running_one.content.readline()
            leaving.set()
            await eventually(lambda: stopping.gateway.gate.is_draining)
            async with http.post(url + CHAT, json=SHORT) as refused:
                assert (refused.status, int(refused.headers["Retry-After"])) == (503, 5)
            async with http.get(url + "/health") as health:
                assert health.status == 503
            assert (await running_one.read()).endswith(b"data: [DONE]\n\n")
        await gateway


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_the_stop_cuts_short_says_so(served: ServedGateway, stream: bool) -> None:
    has_begun = asyncio.Event()

    async def read(url: str) -> tuple[int, bytes]:
        async with (
            aiohttp.ClientSession() as http,
            http.post(url + CHAT, json=LONG | {"stream": stream, "n": 8}) as response,
        ):
            has_begun.set()
            return response.status, await response.read()

    async with asyncio.TaskGroup() as tasks:
        async with served_gateway(served.cluster, stop_s=0.01) as stopping:
            answer = tasks.create_task(read(stopping.gateway.url))
            await eventually(lambda: has_begun.is_set() or (not stream and stopping.sessions_on_workers() == 16))
        status, body = await answer
    assert status == (200 if stream else 503)
    error = json.loads(body.rstrip().rsplit(b"data: ", 1)[-1])["error"]
    assert (error["code"], "stopped before the answer was complete" in error["message"]) == ("draining", True)
    await eventually(lambda: served.sessions_on_workers() == 0)


async def test_models_are_listed_and_one_is_shown(served: ServedGateway) -> None:
    listed = (await served.ask("GET", "/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    assert (await served.ask("GET", "/v1/models/tiny")).json() == listed["data"][0]
    missing = await served.ask("GET", "/v1/models/huge")
    assert (missing.status, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert (await served.ask("GET", "/health")).json()["status"] == "ok"


async def test_speaks_tls_if_it_has_a_certificate(served: ServedGateway, tmp_path: Path) -> None:
    authority = TestAuthority()
    files = authority.worker(tmp_path, "gateway.example")
    context = ssl.create_default_context(cadata=authority.ca_pem)
    context.check_hostname = False
    async with served_gateway(served.cluster, tls_cert=files.certificate, tls_key=files.key) as encrypted:
        assert encrypted.gateway.url.startswith("https://")
        assert (await encrypted.ask("GET", "/v1/models", ssl=context)).status == 200


async def test_a_key_with_a_password_is_refused_instead_of_asked_for(served: ServedGateway, tmp_path: Path) -> None:
    files = TestAuthority().worker(tmp_path, "gateway.example")
    key = load_pem_private_key(files.key.read_bytes(), None)
    how = BestAvailableEncryption(b"password")
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    with pytest.raises(ConfigError, match="encrypted with a password"):
        async with running(gateway_config(served.cluster, tls_cert=files.certificate, tls_key=files.key)):
            pass


async def test_settings_that_cant_be_meant_are_refused(served: ServedGateway, tmp_path: Path) -> None:
    for changes, message in (
        ({"tls_cert": tmp_path / "a"}, "--tls-key"),
        ({"tls_cert": tmp_path / "a", "tls_key": tmp_path / "b"}, "can't be used"),
        ({"allow_origins": ("chat.example",)}, "--allow-origin"),
        ({"allow_origins": ("https://chat.example/",)}, "--allow-origin"),
        ({"timeout_s": 0.0}, "--timeout"),
    ):
        with pytest.raises(ConfigError, match=message):
            async with running(gateway_config(served.cluster, **changes)):
                pass
    with pytest.raises(PortInUseError):
        async with running(gateway_config(served.cluster, listen_port=served.gateway.port)):
            pass
