"""Serves this worker's model files to other workers of the cluster."""

from __future__ import annotations

import asyncio
from typing import BinaryIO

import structlog
from aiohttp import web

from protocol.errors import ForbiddenError, InvalidRequestError, OverloadedError
from protocol.ids import FileHash
from protocol.tls import peer_worker_id
from worker.files import FileCache

log = structlog.get_logger(__name__)

MAX_DOWNLOADS = 16
"""Files sent at the same time; whoever comes then is told to ask somebody else."""
_CHUNK_BYTES = 256 * 2**10
CHUNK_S = 30.0
"""A reader that takes longer for a chunk is cut off."""


class FileServer:
    """`GET /v1/files/{sha256}` with Range, for whoever shows a worker's certificate."""

    def __init__(self, cache: FileCache, *, max_downloads: int = MAX_DOWNLOADS, chunk_s: float = CHUNK_S) -> None:
        self._cache = cache
        self._chunk_s = chunk_s
        self._max_downloads = max_downloads
        self._n_downloads = 0

    def add_routes(self, app: web.Application) -> None:
        """Put the route into the worker's web application."""
        app.router.add_get("/v1/files/{sha256}", self._serve, allow_head=False)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None or peer_worker_id(transport.get_extra_info("ssl_object")) is None:
            raise ForbiddenError("model files are for workers of this cluster: no worker's certificate was shown")
        if self._n_downloads >= self._max_downloads:
            raise OverloadedError(f"{self._n_downloads} files are being sent already", retry_after_s=1.0)
        self._n_downloads += 1
        try:
            return await self._send(request, FileHash(request.match_info["sha256"]))
        finally:
            self._n_downloads -= 1

    async def _send(self, request: web.Request, sha256: FileHash) -> web.StreamResponse:
        """Send a range of the file. NotFoundError if it isn't here."""
        path = await asyncio.to_thread(self._cache.checked_path, sha256)
        file = await asyncio.to_thread(path.open, "rb", 0)
        try:
            size = await asyncio.to_thread(file.seek, 0, 2)
            start, end, is_partial = _wanted_range(request, size)
            response = web.StreamResponse(status=206 if is_partial else 200)
            response.content_type = "application/octet-stream"
            response.content_length = end - start
            response.headers["Accept-Ranges"] = "bytes"
            if is_partial:
                response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            await response.prepare(request)
            if not await self._is_sent(file, start, end, response):
                _cut_off(request)  # an error's answer, or the next one's, would be taken for the file's bytes
            return response
        finally:
            await asyncio.to_thread(file.close)

    async def _is_sent(self, file: BinaryIO, start: int, end: int, response: web.StreamResponse) -> bool:
        try:
            await _copy(file, start, end, response, self._chunk_s)
        except (TimeoutError, OSError, EOFError) as exc:
            log.info("file_cut_off", reason=str(exc) or type(exc).__name__)
            return False
        return True


def _cut_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _wanted_range(request: web.Request, size: int) -> tuple[int, int, bool]:
    """First byte, end and whether a range was asked for (the whole file is sent if it can't be had)."""
    try:
        wanted = request.http_range
    except ValueError as exc:
        raise InvalidRequestError(f"the Range header can't be used: {exc}") from exc
    if wanted.start is None and wanted.stop is None:
        return 0, size, False
    start, end, _ = wanted.indices(size)
    if start >= end:
        raise InvalidRequestError(f"the range begins at byte {start} of a file of {size}")
    return start, end, True


async def _copy(file: BinaryIO, start: int, end: int, response: web.StreamResponse, chunk_s: float) -> None:
    """Send the bytes [start, end).

    Raises:
        TimeoutError: the reader is too slow.
        OSError: it is gone, or the file can't be read.
        EOFError: the file became shorter.
    """
    await asyncio.to_thread(file.seek, start)
    n_left = end - start
    while n_left > 0:
        chunk = await asyncio.to_thread(file.read, min(_CHUNK_BYTES, n_left))
        if not chunk:
            raise EOFError(f"{n_left} bytes of the file are missing")
        n_left -= len(chunk)
        async with asyncio.timeout(chunk_s):
            await response.write(chunk)
    await response.write_eof()
