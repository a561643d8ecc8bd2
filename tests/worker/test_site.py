from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from protocol.errors import PortInUseError
from protocol.ids import CoordinatorId
from protocol.tls import client_context, worker_name
from tests.support.open_files import is_cut
from tests.support.pki import TestAuthority, WorkerFiles
from worker.enrolment import Credentials, CredentialsHolder
from worker.site import Site, bound_socket, url_of

WAIT_S = 10.0


class Listening:
    """A site on loopback, and who may call it."""

    def __init__(self, tmp_path: Path) -> None:
        self.authority = TestAuthority()
        self.files = self.authority.worker(tmp_path)
        self.bound = bound_socket("127.0.0.1", 0)
        self.holder = CredentialsHolder(self.credentials(self.files))

    def credentials(self, files: WorkerFiles) -> Credentials:
        return Credentials(
            coordinator_url="https://127.0.0.1:1",
            coordinator_id=CoordinatorId("c-test"),
            certificate=files.certificate,
            key=files.key,
            ca_pem=self.authority.ca_pem,
            session_token="none",
            ticket_key=bytes(32),
            renew_at_s=0.0,
            expires_at_s=0.0,
        )

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            *self.bound.getsockname()[:2],
            ssl=client_context(self.authority.ca_pem),
            server_hostname=worker_name(self.files.worker_id),
        )


@asynccontextmanager
async def listening(tmp_path: Path, *, idle_s: float = 30.0) -> AsyncIterator[Listening]:
    it = Listening(tmp_path)
    async with asyncio.timeout(WAIT_S), Site(web.Application(), it.bound, it.holder, idle_s=idle_s):
        yield it


@pytest.mark.parametrize("beginning", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_who_sends_no_request_or_only_a_part_of_one_is_cut_off(tmp_path: Path, beginning: bytes) -> None:
    async with listening(tmp_path, idle_s=0.2) as it:
        reader, writer = await it.connect()
        writer.write(beginning)
        assert await reader.read() == b""
        writer.transport.abort()


async def test_a_certificate_that_cant_be_loaded_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    async with listening(tmp_path) as it:
        it.holder.replace(replace(it.holder.current, certificate=tmp_path / "none.pem"))
        broken = tmp_path / "broken.pem"
        broken.write_text("no certificate")
        it.holder.replace(replace(it.holder.current, certificate=broken))
        _, writer = await it.connect()
        writer.transport.abort()


async def test_new_connections_get_the_renewed_certificate(tmp_path: Path) -> None:
    async with listening(tmp_path) as it:
        it.files = it.authority.worker(tmp_path)
        with pytest.raises(ssl.SSLCertVerificationError):
            await it.connect()
        it.holder.replace(it.credentials(it.files))
        _, writer = await it.connect()
        writer.transport.abort()


def test_a_port_in_use_is_named() -> None:
    with bound_socket("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(PortInUseError, match=str(port)):
            bound_socket("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "facing", "begins"),
    [
        ("127.0.0.1", "10.0.0.1", "https://127.0.0.1:"),
        ("0.0.0.0", "10.0.0.1", "https://10.0.0.1:"),
    ],
)
def test_a_socket_on_all_addresses_goes_by_the_one_that_faces_the_coordinator(
    host: str, facing: str, begins: str
) -> None:
    with bound_socket(host, 0) as bound:
        assert url_of(bound, facing).startswith(begins)


class AtOnce(ThreadPoolExecutor):
    """No threads: what is given is done when it is given, so that the loop's turns can be counted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


async def test_a_start_that_is_cancelled_at_any_moment_listens_no_more(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_default_executor(AtOnce())

    async def begun(it: Listening) -> None:
        async with Site(web.Application(), it.bound, it.holder):
            begun_after.append(n_turns)

    n_turns, begun_after = 0, list[int]()
    while not begun_after:
        n_turns += 1
        it = Listening(tmp_path)
        with it.bound:
            await is_cut(begun(it), n_turns)
            with pytest.raises(OSError, match=r"refused|Connect call failed|descriptor"):
                await it.connect()
    assert n_turns > 2
