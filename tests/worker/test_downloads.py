from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from protocol.errors import StorageError, UnreachableError
from protocol.ids import FileHash
from protocol.manifest import ModelFile
from protocol.tls import client_context, server_context, worker_name
from tests.support.pki import TestAuthority
from worker.downloads import Downloader, FileSource
from worker.files import FileCache

DATA = bytes(range(256)) * 4096  # 1 MiB
STALL_S = 0.5
"""The patience of who is to lose it. Else a busy machine has its time."""
FILE = ModelFile(name="block-0", sha256=FileHash(hashlib.sha256(DATA).hexdigest()), size_bytes=len(DATA))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Net:
    """Sources on loopback, each of which answers as its handler says."""

    def __init__(self, tmp_path: Path, downloader: Downloader, cache: FileCache) -> None:
        self.tmp_path, self.downloader, self.cache = tmp_path, downloader, cache
        self.authority = TestAuthority()
        self.ranges: list[str | None] = []
        self.runners: list[web.AppRunner] = []
        self.got: list[tuple[str, int]] = []

    async def source(self, name: str, handler: Handler) -> FileSource:
        async def serve(request: web.Request) -> web.StreamResponse:
            self.ranges.append(request.headers.get("Range"))
            return await handler(request)

        files = self.authority.worker(self.tmp_path)
        app = web.Application()
        app.router.add_get(f"/v1/files/{FILE.sha256}", serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self.runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(files.certificate, files.key))
        await site.start()
        return FileSource(
            name=name,
            url=f"https://127.0.0.1:{runner.addresses[0][1]}",
            context=client_context(self.authority.ca_pem),
            server_hostname=worker_name(files.worker_id),
        )

    async def fetch(self, *sources: FileSource) -> Path:
        async with asyncio.timeout(20):
            return await self.downloader.fetch(FILE, sources, lambda s, n: self.got.append((s.name, n)))


@asynccontextmanager
async def opened(tmp_path: Path, *, stall_s: float = 10.0) -> AsyncIterator[Net]:
    cache = FileCache(tmp_path / "cache")
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        net = Net(tmp_path, Downloader(session, cache, lambda: 1.0, stall_s=stall_s), cache)
        try:
            yield net
        finally:
            for runner in net.runners:
                await runner.cleanup()


def honest(data: bytes = DATA) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        start = request.http_range.start or 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return web.Response(status=206, body=data[start:], headers=headers)

    return serve


def stopping_at(n_bytes: int, *, is_silent: bool) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=206)
        response.content_length = len(DATA)
        response.headers["Content-Range"] = f"bytes 0-{len(DATA) - 1}/{len(DATA)}"
        await response.prepare(request)
        await response.write(DATA[:n_bytes])
        if is_silent:
            await asyncio.sleep(30)
        assert request.transport is not None
        request.transport.abort()
        return response

    return serve


async def error(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=503, body=b'{"error":{"code":"overloaded","message":"busy"}}')


async def test_a_file_comes_whole_and_is_admitted(tmp_path: Path) -> None:
    async with opened(tmp_path) as net:
        path = await net.fetch(await net.source("peer", honest()))
        assert path.read_bytes() == DATA
        assert net.cache.hashes() == (FILE.sha256,)
        assert sum(n for _, n in net.got) == len(DATA)


@pytest.mark.parametrize("is_silent", [True, False])
async def test_the_next_source_goes_on_where_one_broke_off_or_fell_silent(tmp_path: Path, is_silent: bool) -> None:
    async with opened(tmp_path, stall_s=STALL_S) as net:
        part = net.cache.part_path(FILE.sha256)
        part.write_bytes(DATA[:1000])

        async def silent(request: web.Request) -> web.StreamResponse:
            if is_silent:
                await asyncio.sleep(30)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        bad, good = await net.source("bad", silent), await net.source("good", honest())
        assert (await net.fetch(bad, good)).read_bytes() == DATA
        assert net.ranges[-1] == "bytes=1000-"


async def test_a_source_that_stalls_in_the_middle_is_left(tmp_path: Path) -> None:
    async with opened(tmp_path, stall_s=STALL_S) as net:
        bad = await net.source("bad", stopping_at(5000, is_silent=True))
        assert (await net.fetch(bad, await net.source("good", honest()))).read_bytes() == DATA


@pytest.mark.parametrize("wrong", [DATA[:-1] + b"x", DATA + b"x", DATA[:-5], b""])
async def test_wrong_bytes_are_thrown_away_and_the_next_source_asked(tmp_path: Path, wrong: bytes) -> None:
    async with opened(tmp_path) as net:
        bad, good = await net.source("bad", honest(wrong)), await net.source("good", honest())
        assert (await net.fetch(bad, good)).read_bytes() == DATA


async def test_a_wrong_earlier_part_is_not_the_new_source_s_fault(tmp_path: Path) -> None:
    async with opened(tmp_path) as net:
        net.cache.part_path(FILE.sha256).write_bytes(b"x" * 1000)
        assert (await net.fetch(await net.source("good", honest()))).read_bytes() == DATA
        assert net.ranges == ["bytes=1000-", "bytes=0-"]


async def test_a_part_that_is_too_long_is_begun_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as net:
        net.cache.part_path(FILE.sha256).write_bytes(DATA + b"more")
        assert (await net.fetch(await net.source("good", honest()))).read_bytes() == DATA


async def test_a_complete_part_needs_no_source_s_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path) as net:
        net.cache.part_path(FILE.sha256).write_bytes(DATA)
        await net.fetch(await net.source("peer", honest()))
        assert net.ranges == []


async def test_a_source_without_ranges_sends_it_all_again(tmp_path: Path) -> None:
    async def whole(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=DATA)

    async with opened(tmp_path) as net:
        net.cache.part_path(FILE.sha256).write_bytes(DATA[:7])
        assert (await net.fetch(await net.source("peer", whole))).read_bytes() == DATA


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    async with opened(tmp_path) as net:
        target = await net.source("target", honest())

        async def redirect(_request: web.Request) -> web.StreamResponse:
            raise web.HTTPFound(f"{target.url}/v1/files/{FILE.sha256}")

        with pytest.raises(UnreachableError, match="302"):
            await net.fetch(await net.source("redirecting", redirect))
        assert len(net.ranges) == 1


async def test_a_source_that_is_another_worker_gets_no_chance(tmp_path: Path) -> None:
    async with opened(tmp_path) as net:
        one, other = await net.source("one", honest()), await net.source("other", honest())
        posing = FileSource(name="x", url=other.url, context=one.context, server_hostname=one.server_hostname)
        with pytest.raises(UnreachableError, match="certificate"):
            await net.fetch(posing)


async def test_when_all_fail_each_fault_is_named_and_the_part_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, stall_s=STALL_S) as net:
        broken = await net.source("w-one", stopping_at(5000, is_silent=True))
        with pytest.raises(UnreachableError, match=r"w-one: no more bytes.*the coordinator: busy"):
            await net.fetch(broken, await net.source("the coordinator", error))
        assert FILE.sha256 not in net.cache.hashes()
        with pytest.raises(UnreachableError, match="nobody has it"):
            await net.fetch()


async def test_a_disk_that_takes_nothing_ends_it_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as net:
        net.cache.part_path(FILE.sha256).mkdir()
        with pytest.raises(StorageError):
            await net.fetch(await net.source("a", honest()), await net.source("b", honest()))
        assert net.ranges == []


async def test_cancelling_keeps_what_has_come(tmp_path: Path) -> None:
    async with opened(tmp_path) as net:
        reached = asyncio.Event()

        async def slow(request: web.Request) -> web.StreamResponse:
            reached.set()
            await asyncio.sleep(30)
            return web.Response()

        source = await net.source("slow", slow)
        net.cache.part_path(FILE.sha256).write_bytes(DATA[:1000])
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(net.fetch(source))
            await reached.wait()
            task.cancel()
        assert net.cache.part_size(FILE.sha256) == 1000
