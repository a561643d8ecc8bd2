"""Servers of one file on loopback, with real TLS, that misbehave as a test says.

async with file_net(tmp_path) as net:
    bad = await net.source("bad", cutting(5000))
    path = await net.fetch(bad, await net.source("good", honest()))
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
from aiohttp import web

from protocol.ids import FileHash
from protocol.manifest import ModelFile
from protocol.tls import client_context, server_context, worker_name
from tests.support.pki import TestAuthority
from worker.downloads import Downloader, FileSource
from worker.files import FileCache

DATA = bytes(range(256)) * 1024  # 256 KiB
FILE = ModelFile(name="block-0", sha256=FileHash(hashlib.sha256(DATA).hexdigest()), size_bytes=len(DATA))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FileNet:
    """Sources of `FILE`, a cache, and a downloader between them."""

    def __init__(self, tmp_path: Path, downloader: Downloader, cache: FileCache) -> None:
        self.downloader, self.cache = downloader, cache
        self.asked: list[tuple[str, str | None]] = []
        """Which source was asked for which range."""
        self.told_on: list[str] = []
        self._tmp_path = tmp_path
        self._authority = TestAuthority()
        self._runners: list[web.AppRunner] = []

    async def source(self, name: str, handler: Handler) -> FileSource:
        """Start one more; it is a worker, not the coordinator."""

        async def serve(request: web.Request) -> web.StreamResponse:
            self.asked.append((name, request.headers.get("Range")))
            return await handler(request)

        files = self._authority.worker(self._tmp_path)
        app = web.Application()
        app.router.add_get("/v1/files/{sha256}", serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(files.certificate, files.key))
        await site.start()
        return FileSource(
            name=name,
            worker_id=files.worker_id,
            url=f"https://127.0.0.1:{runner.addresses[0][1]}",
            context=client_context(self._authority.ca_pem),
            server_hostname=worker_name(files.worker_id),
        )

    async def coordinator(self, handler: Handler) -> FileSource:
        """Start one that stands for the coordinator: nobody tells on it."""
        return replace(await self.source("the coordinator", handler), worker_id=None)

    async def fetch(self, *sources: FileSource) -> Path:
        """Download the file within 20 s."""

        async def tell(source: FileSource, _file: ModelFile) -> None:
            self.told_on.append(source.name)

        async with asyncio.timeout(20):
            return await self.downloader.fetch(FILE, sources, lambda _source, _n_bytes: None, tell)

    def part(self) -> bytes:
        """What has come so far."""
        return self.cache.part_path(FILE.sha256).read_bytes()

    async def close(self) -> None:
        """Stop all servers."""
        for runner in self._runners:
            await runner.cleanup()


@asynccontextmanager
async def file_net(tmp_path: Path, *, stall_s: float = 10.0, piece_s: float = 10.0) -> AsyncIterator[FileNet]:
    """A downloader that loses patience as soon as a test wants it to; else a busy machine has its time."""
    cache = FileCache(tmp_path / "cache")
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        net = FileNet(tmp_path, Downloader(session, cache, lambda: 1.0, stall_s=stall_s, piece_s=piece_s), cache)
        try:
            yield net
        finally:
            await net.close()


def honest(data: bytes = DATA) -> Handler:
    """Sends the range that is asked for, of `data`."""

    async def serve(request: web.Request) -> web.StreamResponse:
        start = request.http_range.start or 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return web.Response(status=206, body=data[start:], headers=headers)

    return serve


def without_ranges(data: bytes = DATA) -> Handler:
    """Sends all of `data`, whatever was asked."""

    async def serve(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=data)

    return serve


def cutting(n_bytes: int, data: bytes = DATA) -> Handler:
    """Sends `n_bytes` of the range, lets them arrive, and closes the connection."""

    async def serve(request: web.Request) -> web.StreamResponse:
        response = await _begun(request, data, n_bytes)
        await asyncio.sleep(0.02)  # part of what the server does: a cut that swallows what was sent says nothing
        _abort(request)
        return response

    return serve


def stalling(n_bytes: int, data: bytes = DATA) -> Handler:
    """Sends `n_bytes` of the range and then nothing, for good."""

    async def serve(request: web.Request) -> web.StreamResponse:
        response = await _begun(request, data, n_bytes)
        await asyncio.Event().wait()
        return response

    return serve


def dripping(pause_s: float, data: bytes = DATA) -> Handler:
    """Sends a byte at a time, often enough to be no stall."""

    async def serve(request: web.Request) -> web.StreamResponse:
        response = await _begun(request, data, 1)
        for position in range((request.http_range.start or 0) + 1, len(data)):
            await asyncio.sleep(pause_s)
            await response.write(data[position : position + 1])
        return response

    return serve


def lying_about_length(claimed: int, data: bytes = DATA) -> Handler:
    """Says that the file has `claimed` bytes."""

    async def serve(request: web.Request) -> web.StreamResponse:
        start = request.http_range.start or 0
        headers = {"Content-Range": f"bytes {start}-{claimed - 1}/{claimed}"}
        return web.Response(status=206, body=data[start:], headers=headers)

    return serve


def redirecting(target: str) -> Handler:
    """Sends callers elsewhere."""

    async def serve(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(target)

    return serve


def answering(status: int, body: bytes = b"no") -> Handler:
    """Answers an error."""

    async def serve(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    return serve


async def _begun(request: web.Request, data: bytes, n_bytes: int) -> web.StreamResponse:
    start = request.http_range.start or 0
    response = web.StreamResponse(status=206)
    response.content_length = len(data) - start
    response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    await response.prepare(request)
    await response.write(data[start : start + n_bytes])
    return response


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
