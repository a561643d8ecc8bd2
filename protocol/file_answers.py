"""A file, or the range of it that was asked for, as an HTTP answer; who reads too slowly is cut off."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import structlog
from aiohttp import web

from protocol.background import uninterrupted

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 256 * 2**10
CHUNK_S = 30.0
"""A reader that takes longer for a chunk is cut off."""


async def file_answer(request: web.Request, path: Path, *, chunk_s: float = CHUNK_S) -> web.StreamResponse:
    """Send the file, or a range of it, and return the answer; 416 for a range that the file doesn't have.

    Who reads too slowly, or when the file becomes shorter, is disconnected: nothing can be said in mid-file.
    """
    opened = ExitStack()
    try:
        file = await uninterrupted(asyncio.to_thread(lambda: opened.enter_context(path.open("rb", 0))))
        size = await asyncio.to_thread(file.seek, 0, 2)
        wanted = _wanted_range(request, size)
        if wanted is None:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        start, end, is_partial = wanted
        response = web.StreamResponse(status=206 if is_partial else 200)
        response.content_type = "application/octet-stream"
        response.content_length = end - start
        response.headers["Accept-Ranges"] = "bytes"
        if is_partial:
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        await response.prepare(request)
        if not await _is_sent(file, start, end, response, chunk_s) and request.transport is not None:
            request.transport.abort()  # an error's answer, or the next one's, would be taken for the file's bytes
        return response
    finally:
        await uninterrupted(asyncio.to_thread(opened.close))


async def _is_sent(file: BinaryIO, start: int, end: int, response: web.StreamResponse, chunk_s: float) -> bool:
    try:
        await _copy(file, start, end, response, chunk_s)
    except (TimeoutError, OSError, EOFError) as exc:
        log.info("file_cut_off", reason=str(exc) or type(exc).__name__)
        return False
    return True


def _wanted_range(request: web.Request, size: int) -> tuple[int, int, bool] | None:
    """First byte, end and whether a range was asked for; None if it can't be had."""
    try:
        wanted = request.http_range
    except ValueError:
        return None
    if wanted.start is None and wanted.stop is None:
        return 0, size, False
    start, end, _ = wanted.indices(size)
    return (start, end, True) if start < end else None


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
