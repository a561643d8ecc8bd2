from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from protocol.ids import FileHash
from protocol.tls import client_context, server_context, worker_name
from tests.support.pki import TestAuthority, WorkerFiles
from worker.file_server import FileServer
from worker.files import FileCache
from worker.site import errors_to_answers

DATA = bytes(range(256)) * 3000
NAME = FileHash(hashlib.sha256(DATA).hexdigest())


class Served:
    def __init__(self, tmp_path: Path, *, max_downloads: int = 16) -> None:
        self.authority = TestAuthority()
        self.cache = FileCache(tmp_path / "cache")
        self.cache.put(NAME, DATA, 0.0)
        self.server = self.authority.worker(tmp_path)
        self.peer = self.authority.worker(tmp_path)
        self.files = FileServer(self.cache, max_downloads=max_downloads)
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
async def served(tmp_path: Path, **options: int) -> AsyncIterator[Served]:
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
        assert (await it.get(f"/v1/files/{NAME}", it.peer, Range=wanted))[0] == 400


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
