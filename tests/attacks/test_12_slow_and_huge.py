"""Class 12. Defences: a deadline for every wait on a stranger, a bound for every size, count and queue."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

import coordinator.middleware
import protocol.guarded_site
from coordinator.app import RunningCoordinator
from protocol.codec import MAX_BODY_BYTES
from protocol.file_answers import file_answer
from protocol.guarded_site import GuardedSite
from protocol.ids import FileHash, SessionId
from protocol.messages import SessionEnded
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.listening import worker_door
from tests.support.raw_http import Door, door_of, end, status_of
from tests.support.ring import running_ring
from tests.support.ring_generation import Generation
from tests.support.stored_model import add_model
from tests.support.tiny_checkpoint import TinyCheckpoint
from worker.file_server import FileServer
from worker.files import FileCache
from worker.limits import Limits

Checkpoints = Callable[[str], TinyCheckpoint]
N_BIG = 24 * 2**20
"""More than sockets and TLS hold back together."""
HELLO = ("GET /v1/hello HTTP/1.1", "Host: 127.0.0.1")
Opener = Callable[[AsyncExitStack], Awaitable[Door]]


@pytest.fixture(params=["coordinator", "worker"])
def open_door(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Either's port. To be opened after what it is made of was changed."""

    async def opened(stack: AsyncExitStack) -> Door:
        if request.param == "coordinator":
            return door_of(await stack.enter_async_context(running_coordinator(tmp_path)))
        return (await stack.enter_async_context(worker_door(tmp_path)))[0]

    return opened


def preset(monkeypatch: pytest.MonkeyPatch, function: Callable[..., object], **values: object) -> None:
    """Other defaults for options that the programs leave alone."""
    defaults = function.__kwdefaults__  # type: ignore[attr-defined]
    for name, value in values.items():
        monkeypatch.setitem(defaults, name, value)


async def test_slow_handshakes_are_cut_off(open_door: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if TLS may take for ever, or asyncio's minute."""
    monkeypatch.setattr(protocol.guarded_site, "HANDSHAKE_S", 0.3)
    async with AsyncExitStack() as stack:
        door = await open_door(stack)
        for begin in (b"", b"\x16\x03\x01\x02\x00\x01"):
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(begin)
            await end(reader)
            writer.transport.abort()


async def test_an_address_has_so_many_handshakes_under_way(
    open_door: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if whoever begins TLS and says no more can have as many sockets as he likes."""
    preset(monkeypatch, GuardedSite.__init__, max_handshakes=3)
    async with AsyncExitStack() as stack:
        door = await open_door(stack)
        crowd = [await begun_handshake(door, stack) for _ in range(3)]
        with capture_logs() as logs:
            for _ in range(2):
                refused, _ = await begun_handshake(door, stack)
                assert await end(refused) == 0
        told = {"remote": "127.0.0.1", "n_handshakes": 3, "log_level": "warning", "event": "handshake_refused"}
        assert [line for line in logs if line["event"] == told["event"]] == [told]  # once: nobody floods the log
        cut(crowd[0][1])
        answers = [status_of(await said_once_let_in(door, *HELLO)) for _ in range(5)]  # done ones don't count
        assert answers[-1] in (200, 404), answers


async def begun_handshake(door: Door, stack: AsyncExitStack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent the beginning of TLS; cut when the stack closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    stack.callback(cut, writer)
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    return reader, writer


def cut(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def said_once_let_in(door: Door, *lines: str) -> bytes:
    """What is answered to who tries until the server has seen that another one has gone."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await door.say(*lines)
            except OSError:
                await asyncio.sleep(0.01)


async def test_slow_headers_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if headers may take for ever, or if a byte now and then is enough to stay."""
    preset(monkeypatch, GuardedSite.__init__, idle_s=0.4)
    async with running_coordinator(tmp_path) as running:
        for begin in (b"", b"GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: b\r\n"):
            async with door_of(running).silent(begin) as reader:
                assert await end(reader) == 0
        assert await dripped(door_of(running), b"GET /v1/hello HTTP/1.1\r\nX: " + b"a" * 4000) < 4000


async def dripped(door: Door, data: bytes) -> int:
    """Send byte after byte until the other side has had enough; how many it took."""
    reader, writer = await door.connect()
    async with asyncio.TaskGroup() as tasks:
        ended = tasks.create_task(end(reader))
        n_sent = 0
        while not ended.done():
            writer.write(data[n_sent : n_sent + 1])
            n_sent += 1
            await asyncio.wait([ended], timeout=0.02)
    writer.transport.abort()
    return n_sent


async def test_slow_bodies_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if `read_body` waits for as long as somebody sends."""
    monkeypatch.setattr(coordinator.middleware, "BODY_TIMEOUT_S", 0.3)
    async with running_coordinator(tmp_path) as running:
        request = (
            "POST /v1/join/challenge HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            "Content-Length: 1000\r\nConnection: close\r\n\r\n{"
        )
        async with door_of(running).silent(request.encode()) as reader:
            async with asyncio.timeout(10):
                assert status_of(await reader.readline()) == 504
            await end(reader)


async def test_an_address_has_so_many_connections_and_others_have_theirs(
    open_door: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if one address can take all of a server's connections, or if those that ended still count."""
    preset(monkeypatch, GuardedSite.__init__, max_connections=3)
    async with AsyncExitStack() as stack:
        door = await open_door(stack)
        async with AsyncExitStack() as crowd:
            for _ in range(3):
                await crowd.enter_async_context(door.silent())
            refusal = await door.say(*HELLO)
            assert status_of(refusal) == 503
            assert b'"code":"overloaded","message":"3 connections of your address are open here' in refusal
            assert b"Retry-After: 1\r\n" in refusal
        answers = [status_of(await door.say(*HELLO)) for _ in range(5)]
        assert answers[-1] in (200, 404), answers


@pytest.mark.parametrize(
    "lines",
    [
        ("GET /v1/hello HTTP/1.1", "Host: a", f"X: {'a' * 10_000}"),
        ("GET /v1/hello HTTP/1.1", "Host: a", *(f"X{i}: a" for i in range(200))),
        (f"GET /{'a' * 10_000} HTTP/1.1", "Host: a"),
        ("POST /v1/join HTTP/1.1", "Host: a", "Content-Length: 4", "Transfer-Encoding: chunked"),
        ("POST /v1/join HTTP/1.1", "Host: a", "Content-Length: -1"),
        ("GET /\x1b[31m HTTP/1.1", "Host: a"),
    ],
)
async def test_what_is_too_long_or_no_http_is_answered_in_a_line(
    open_door: Opener, capfd: pytest.CaptureFixture[str], lines: tuple[str, ...]
) -> None:
    """Fails if such a request is read to its end, logged with a traceback, or answered with what it said."""
    async with AsyncExitStack() as stack:
        door = await open_door(stack)
        answer = await door.say(*lines)
        assert status_of(answer) == 400
        assert len(answer) < 1000
        assert b"aiohttp" not in answer
        assert b"nosniff" in answer
        said = capfd.readouterr()
        assert "Traceback" not in said.out + said.err


async def test_huge_and_compressed_bodies_are_refused_unread(tmp_path: Path) -> None:
    """Fails if a body is kept, or unpacked, before its size is known."""
    async with running_coordinator(tmp_path) as running:
        door = door_of(running)
        head = ("POST /v1/join/challenge HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
        assert status_of(await door.say(*head, f"Content-Length: {10**12}", body=b"{")) == 413
        chunk = b"%x\r\n" % (MAX_BODY_BYTES + 1) + b" " * (MAX_BODY_BYTES + 1) + b"\r\n"  # and its end never comes
        assert status_of(await door.say(*head, "Transfer-Encoding: chunked", body=chunk)) == 413
        for encoding in ("gzip", "deflate", "br"):
            answer = await door.say(*head, f"Content-Encoding: {encoding}", "Content-Length: 2", body=b"{}")
            assert status_of(answer) == 400, encoding


async def test_a_reader_of_files_that_never_reads_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a file's sending waits for as long as its reader likes."""
    preset(monkeypatch, file_answer, chunk_s=0.3)
    async with running_coordinator(tmp_path) as running:
        path = await big_file(running)
        begin = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key_of(running, 'client')}\r\n\r\n"
        )
        await check_is_cut_off(door_of(running), begin.encode())


async def check_is_cut_off(door: Door, begin: bytes) -> None:
    """Ask, and read only once everybody else has lost patience: not all of it is there."""
    others = serving()
    async with door.silent(begin) as reader:
        async with asyncio.timeout(10):
            while not (own := serving() - others):  # noqa: ASYNC110 - the server's side of it has no event
                await asyncio.sleep(0.01)
            await asyncio.wait(own)
        assert 0 < await end(reader) < N_BIG


def serving() -> set[asyncio.Task[Any]]:
    """The tasks of connections, of which aiohttp has one for each."""
    return {task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "RequestHandler.start"}


async def big_file(running: RunningCoordinator) -> str:
    """The path of a served file, made big on the disk."""
    model = await add_model(running)
    sha256 = model.manifest.blocks[0].sha256
    path = running.catalogue.file_path(sha256)
    path.chmod(0o600)
    path.write_bytes(bytes(N_BIG))
    return f"/v1/files/{sha256}"


async def test_a_worker_that_never_reads_a_file_is_cut_off(tmp_path: Path) -> None:
    """Fails if a worker's file server waits for as long as its reader likes."""
    cache, data = FileCache(tmp_path / "cache"), bytes(N_BIG)
    name = FileHash(hashlib.sha256(data).hexdigest())
    cache.put(name, data, 0.0)

    def add_routes(app: web.Application) -> None:
        FileServer(cache, chunk_s=0.3).add_routes(app)

    async with worker_door(tmp_path, add_routes) as (door, authority, _):
        reader = authority.worker(tmp_path)
        door.context.load_cert_chain(reader.certificate, reader.key)
        await check_is_cut_off(door, f"GET /v1/files/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


async def test_sockets_that_say_nothing_or_crowd_are_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Fails if a data plane keeps silent connections, or has no limit of clients' connections and sessions."""
    limits = Limits(client_connections=2, sessions_per_connection=1, first_message_s=2.0, idle_client_s=60)
    async with running_ring(checkpoint("llama"), tmp_path, limits=limits) as ring:
        worker = ring.workers[0]
        wires = [await ring.connect(worker) for _ in range(2)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await ring.connect(worker)
        assert refused.value.status == 503
        for wire in wires:
            await wire.closed()
        wire = await ring.connect(worker)
        generations = [
            await Generation.prepared(ring, [1, 2], head_wire=wire, tail_wire=wire, session_id=f"s{i}")
            for i in range(2)
        ]
        for generation in generations:
            await generation.open()
        ended = await wire.receive(SessionEnded)
        assert (ended.session_id, ended.error.code) == (SessionId("s1"), "overloaded")


async def test_a_control_socket_that_says_nothing_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a worker may hold a control socket without ever announcing itself."""
    monkeypatch.setattr("coordinator.control_socket.ANNOUNCE_TIMEOUT_S", 0.2)
    async with running_coordinator(tmp_path) as running:
        token = (await enrolled(running, WorkerKey())).session_token
        async with (
            http_session(running, token) as http,
            http.session.ws_connect(
                f"{http.url}/v1/worker/control", server_hostname=door_of(running).name
            ) as socket,
            asyncio.timeout(10),
        ):
            while (await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                pass
            assert socket.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION
