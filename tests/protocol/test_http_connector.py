from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import socket
import threading
import time
from pathlib import Path

import aiohttp
import pytest

from client.transport import connection_pool
from protocol.compatibility import VERSION_HEADER
from protocol.errors import HopLostError
from protocol.http_connector import MAX_CUTS, ClosingConnector
from protocol.messages import PROTOCOL_VERSION
from protocol.tls import client_context, server_context, worker_name
from tests.support.open_files import nothing_left_open
from tests.support.pki import TestAuthority, WorkerFiles

DEADLINE_S = 20.0
_KEY = b"sec-websocket-key: "
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 4.2.2."""
_CLOSE = b"\x88\x02\x03\xe8"


class SilentPeer:
    """A worker's place that takes one WebSocket, answers the goodbye, and says no word of TLS's own.

    Before that it cuts `n_cut` connections as soon as they are made.
    """

    def __init__(self, shown: WorkerFiles, n_cut: int = 0) -> None:
        self.n_cut, self.cut_at_s = n_cut, list[float]()
        self._context = server_context(shown.certificate, shown.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._may_end = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> SilentPeer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._may_end.set()
        self._thread.join(DEADLINE_S)

    def _serve(self) -> None:
        for _ in range(self.n_cut):
            self._listener.accept()[0].close()
            self.cut_at_s.append(time.monotonic())
        if self.n_cut >= MAX_CUTS:
            self._listener.close()
            return
        plain, _ = self._listener.accept()
        with self._listener, self._context.wrap_socket(plain, server_side=True) as taken:
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):
                asked += taken.recv(4096)
            (key,) = [line[len(_KEY) :] for line in asked.split(b"\r\n") if line.lower().startswith(_KEY)]
            accept = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())
            taken.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                + f"{VERSION_HEADER}: {PROTOCOL_VERSION}\r\n".encode()
                + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )  # fmt: skip
            while (told := taken.recv(4096)) and told[0] != _CLOSE[0]:
                pass
            if told:
                taken.sendall(_CLOSE)
            assert self._may_end.wait(DEADLINE_S)


@pytest.fixture
def authority() -> TestAuthority:
    return TestAuthority()


@pytest.fixture
def worker(authority: TestAuthority, tmp_path: Path) -> WorkerFiles:
    return authority.worker(tmp_path)


def test_a_loop_that_ends_leaves_no_socket_whatever_the_peer_does(
    authority: TestAuthority, worker: WorkerFiles
) -> None:
    async def connect(url: str) -> None:
        async with connection_pool(authority.ca_pem) as pool:
            await pool.connection(worker.worker_id, url)

    with SilentPeer(worker) as peer, nothing_left_open():
        asyncio.run(connect(peer.url))


def test_a_session_that_ends_ends_what_is_under_way(authority: TestAuthority, worker: WorkerFiles) -> None:
    async def leave(url: str) -> aiohttp.WSMsgType:
        connector = ClosingConnector(ssl=client_context(authority.ca_pem))
        async with aiohttp.ClientSession(connector=connector) as http:
            socket = await http.ws_connect(f"{url}/v1/data", server_hostname=worker_name(worker.worker_id))
        return (await socket.receive()).type

    with SilentPeer(worker) as peer, nothing_left_open():
        assert asyncio.run(leave(peer.url)) == aiohttp.WSMsgType.CLOSED


async def test_a_connection_that_is_cut_before_tls_is_made_again_later_and_later(
    authority: TestAuthority, worker: WorkerFiles
) -> None:
    """So a door says that too many handshakes of one address are under way: nobody is to blame."""
    with SilentPeer(worker, n_cut=3) as peer:
        async with asyncio.timeout(DEADLINE_S), connection_pool(authority.ca_pem) as pool:
            assert (await pool.connection(worker.worker_id, peer.url)).is_usable
        waits_s = [later - earlier for earlier, later in itertools.pairwise(peer.cut_at_s)]
    assert waits_s[0] >= 0.1
    assert waits_s[1] >= 0.2


async def test_who_is_cut_again_and_again_is_told_why_that_may_be(
    authority: TestAuthority, worker: WorkerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.http_connector._LONGEST_DELAY_S", 0.0)
    with SilentPeer(worker, n_cut=MAX_CUTS) as peer:
        async with asyncio.timeout(DEADLINE_S), connection_pool(authority.ca_pem) as pool:
            with pytest.raises(HopLostError, match="too many connections come"):
                await pool.connection(worker.worker_id, peer.url)
    assert len(peer.cut_at_s) == MAX_CUTS
