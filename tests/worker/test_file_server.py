from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from protocol.guarded_application import errors_to_answers
from protocol.ids import FileHash
from protocol.tls import client_context, server_context, worker_name
from tests.support.pki import TestAuthority, WorkerFiles
from tests.support.waiting import eventually
from worker.file_server import FileServer
from worker.files import FileCache

DATA = bytes(range(256)) * 3000
NAME = FileHash(hashlib.sha256(DATA).hexdigest())


class Served:
    def __init__(self, tmp_path: Path, *, max_downloads: int = 16, chunk_s: float = 10.0) -> None:
        self.authority = TestAuthority()
        self.cache = FileCache(tmp_path / "cache")
        self.cache.put(NAME, DATA, 0.0)
        self.server = self.authority.worker(tmp_path)
        self.peer = self.authority.worker(tmp_path)
        self.files = FileServer(self.cache, max_downloads=max_downloads, chunk_s=chunk_s)
        self.url = ""

    async def get(self, path: str, files: WorkerFiles | None, **headers: str) -> tuple[int, Any, bytes]:
        context = client_context(self.authority.ca_pem, files and files.certificate, files and files.key)
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            asyncio.timeout(10),
            aiohttp.ClientSession(connector=connector) as session,
            session.get(
                self.url + path, headers=headers, server_hostname=worker_name(self.server.worker_id)
            ) as response,
        ):
            return response.status, response.headers, await response.read()


@asynccontextmanager
async def served(tmp_path: Path, **options: Any) -> AsyncIterator[Served]:
    it = Served(tmp_path, **options)
    app = web.Application(middlewares=[errors_to_answers])
    it.files.add_routes(app)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = server_context(it.server.certificate, it.server.key, it.authority.ca_pem)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    it.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield it
    finally:
        await runner.cleanup()


async def test_a_worker_gets_the_whole_file(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        status, headers, body = await it.get(f"/v1/files/{NAME}", it.peer)
        assert (status, body) == (200, DATA)
        assert headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("bytes=1000-", 1000, None), ("bytes=0-0", 0, 1), ("bytes=5-9", 5, 10), ("bytes=-3", len(DATA) - 3, None)],
)
async def test_a_range_is_what_was_asked_for(tmp_path: Path, wanted: str, start: int, end: int | None) -> None:
    async with served(tmp_path) as it:
        status, headers, body = await it.get(f"/v1/files/{NAME}", it.peer, Range=wanted)
        assert (status, body) == (206, DATA[start:end])
        last = (end or len(DATA)) - 1
        assert headers["Content-Range"] == f"bytes {start}-{last}/{len(DATA)}"


@pytest.mark.parametrize("wanted", ["bytes=9999999-", "bytes=a-b", "bytes=5-3", "lines=1-2"])
async def test_a_range_that_cannot_be_is_refused(tmp_path: Path, wanted: str) -> None:
    async with served(tmp_path) as it:
        assert (await it.get(f"/v1/files/{NAME}", it.peer, Range=wanted))[0] == 416


async def test_who_shows_no_certificate_gets_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        status, _, body = await it.get(f"/v1/files/{NAME}", None)
        assert status == 403
        assert b'"forbidden"' in body


async def test_a_certificate_that_is_no_worker_s_gets_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        other = it.peer
        key = it.authority._key
        client = it.authority.issue(tmp_path, key, other.worker_id, "coordinator.brigade.internal")
        assert (await it.get(f"/v1/files/{NAME}", client))[0] == 401


async def test_a_worker_of_another_cluster_does_not_even_connect(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        stranger = TestAuthority().worker(tmp_path)
        with pytest.raises((aiohttp.ClientError, OSError)):
            await it.get(f"/v1/files/{NAME}", stranger)


@pytest.mark.parametrize("name", ["a" * 64, "index.json", "..%2F..%2Findex.json", NAME.upper()])
async def test_other_files_are_not_there(tmp_path: Path, name: str) -> None:
    async with served(tmp_path) as it:
        assert (await it.get(f"/v1/files/{name}", it.peer))[0] == 404


async def test_an_altered_file_is_not_served(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        it.cache.path(NAME).chmod(0o600)
        it.cache.path(NAME).write_bytes(b"x" * len(DATA))
        assert (await it.get(f"/v1/files/{NAME}", it.peer))[0] == 404


async def test_too_many_at_once_are_sent_elsewhere(tmp_path: Path) -> None:
    async with served(tmp_path, max_downloads=0) as it:
        status, _, body = await it.get(f"/v1/files/{NAME}", it.peer)
        assert status == 503
        assert b"retry_after_s" in body


async def test_a_reader_that_stops_is_cut_off_and_gets_nothing_but_the_files_bytes(tmp_path: Path) -> None:
    big = bytes(16 * 2**20)
    async with served(tmp_path, chunk_s=0.2) as it:
        name = FileHash(hashlib.sha256(big).hexdigest())
        it.cache.put(name, big, 0.0)
        context = client_context(it.authority.ca_pem, it.peer.certificate, it.peer.key)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            int(it.url.rsplit(":", 1)[1]),
            ssl=context,
            server_hostname=worker_name(it.server.worker_id),
            limit=2**10,
        )
        writer.write(f"GET /v1/files/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await eventually(lambda: it.files._n_downloads == 1)
        await eventually(lambda: it.files._n_downloads == 0)
        received = b""
        with suppress(OSError):
            async with asyncio.timeout(10):
                while piece := await reader.read(2**20):
                    received += piece
        body = received.partition(b"\r\n\r\n")[2]
        assert len(body) < len(big)
        assert not body.strip(b"\0")
        writer.transport.abort()


async def test_a_file_that_became_shorter_ends_the_connection(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        checked_path = it.cache.checked_path

        def checked_path_of_a_file_that_shrinks(name: FileHash) -> Path:
            path = checked_path(name)
            path.chmod(0o600)
            return Shrinking(path)

        it.cache.checked_path = checked_path_of_a_file_that_shrinks  # type: ignore[method-assign]
        with pytest.raises(aiohttp.ClientError):
            await it.get(f"/v1/files/{NAME}", it.peer)


class Shrinking(type(Path())):  # type: ignore[misc]
    """A path whose file is cut when it is opened and measured."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        return ShrinkingFile(super().open(*args, **kwargs), Path(self))


class ShrinkingFile:
    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def __enter__(self) -> ShrinkingFile:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()

    def seek(self, offset: int, whence: int = 0) -> Any:
        at = self._file.seek(offset, whence)
        if whence == 2:
            os.truncate(self._path, 1000)
        return at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
