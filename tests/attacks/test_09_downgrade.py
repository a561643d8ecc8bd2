"""Class 9. Defences: the version is under the MAC; TLS 1.3 only, on every port, in both directions; no HTTP."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from protocol.api_key import api_key_from_text
from protocol.errors import ConfigError, UnreachableError, WrongSecretError
from protocol.messages import PROTOCOL_VERSION
from protocol.pinned_http import pinned_session
from tests.support.coordinators import http_session, join_secret_of, key_of, running_coordinator
from tests.support.joining import WorkerKey, challenge
from tests.support.meddler import Meddler, meddling
from tests.support.pki import TestAuthority
from tests.support.ring import running_ring
from tests.support.tiny_checkpoint import TinyCheckpoint
from worker.config import WorkerConfig
from worker.enrolment import enrol
from worker.identity import load_identity

Checkpoints = Callable[[str], TinyCheckpoint]
OTHER_MINOR = PROTOCOL_VERSION.split(".", maxsplit=1)[0] + ".99"


class VersionChanger(Meddler):
    """Tells the coordinator that the worker speaks another minor version, which the coordinator would speak too."""

    def request(self, path: str, body: bytes, proof: str) -> tuple[bytes, str]:
        if path == "/v1/join/challenge":
            body = json.dumps(json.loads(body) | {"protocol_version": OTHER_MINOR}).encode()
        return body, proof


async def test_the_version_cannot_be_talked_down(tmp_path: Path) -> None:
    """Fails without the version under the MAC: whoever is in between has even the coordinator's certificate."""
    async with running_coordinator(tmp_path) as coordinator:
        async with http_session(coordinator) as http:
            await challenge(http, WorkerKey().worker_id, OTHER_MINOR)  # the version as such is spoken
        async with meddling(coordinator, VersionChanger(), tmp_path, has_stolen_key=True) as between:
            with pytest.raises(WrongSecretError):
                await enrol(load_identity(tmp_path), (between.url,), join_secret_of(coordinator), utc_now_s)
        assert between.statuses["/v1/join"] == 401


def old_context() -> ssl.SSLContext:
    """TLS 1.2 at most, whoever answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


async def refuses_old_tls(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=old_context())
    except (ssl.SSLError, ConnectionResetError):
        return True
    writer.close()
    return False


async def test_no_port_takes_older_tls(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Fails if a server context has no minimum version."""
    async with running_coordinator(tmp_path) as coordinator:
        assert await refuses_old_tls(coordinator.port)
    async with running_ring(checkpoint("llama"), tmp_path) as ring:
        assert await refuses_old_tls(int(ring.workers[0].url.rsplit(":", 1)[1]))


@asynccontextmanager
async def old_server(folder: Path, *, is_plain: bool) -> AsyncIterator[str]:
    """Whoever connects gets TLS 1.2 at most, or none at all."""
    files = TestAuthority().worker(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=None if is_plain else context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("is_plain", [True, False])
async def test_nobody_talks_to_a_server_of_older_tls(tmp_path: Path, is_plain: bool) -> None:
    """Fails if a client context has no minimum version: the worker and who holds an API key, each."""
    async with running_coordinator(tmp_path) as coordinator:
        secret, key = join_secret_of(coordinator), api_key_from_text(key_of(coordinator, "client"))
    async with old_server(tmp_path, is_plain=is_plain) as url:
        with pytest.raises(UnreachableError, match=r"TLS 1\.3"):
            await enrol(load_identity(tmp_path), (url,), secret, utc_now_s)
        with pytest.raises(UnreachableError):
            async with pinned_session(url, key):
                pass


async def test_plain_http_is_refused_by_name(tmp_path: Path) -> None:
    """Fails if http:// is taken anywhere."""
    async with running_coordinator(tmp_path) as coordinator:
        secret, key = join_secret_of(coordinator), api_key_from_text(key_of(coordinator, "client"))
    with pytest.raises(ConfigError, match="http"):
        WorkerConfig(coordinator_urls=("http://127.0.0.1:7400",), secret=secret, state=tmp_path)
    with pytest.raises(ConfigError, match="http"):
        async with pinned_session("http://127.0.0.1:7400", key):
            pass
