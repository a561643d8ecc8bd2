"""A streamed answer on its way to one client: written as it comes, kept alive, given up if nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import structlog
from aiohttp import web

from client.gateway.keys import CONFIG
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 10.0
"""Without a word: proxies cut silent connections after 30 to 60 s."""
KEEP_ALIVE = b": keep-alive\n\n"
EVENT_STREAM = "text/event-stream"
SSE_HEADERS = {"Content-Type": f"{EVENT_STREAM}; charset=utf-8", "X-Accel-Buffering": "no"}
"""The second asks nginx not to hold the events back."""


class Stream:
    """The body of one answer. It begins with its first bytes: what fails before is answered with a status."""

    def __init__(
        self, request: web.Request, *, headers: Mapping[str, str] = SSE_HEADERS, keep_alive: bytes = KEEP_ALIVE
    ) -> None:
        self._request = request
        self._keep_alive = keep_alive
        self.response = web.StreamResponse(headers=dict(headers))

    async def write(self, data: bytes) -> None:
        """Send this, or a word to keep the connection if it is empty.

        Raises:
            ConnectionError: the client has gone, or doesn't read.
        """
        if not self.response.prepared:
            await self.response.prepare(self._request)
        stalled_s = self._request.app[CONFIG].stalled_s
        try:
            async with asyncio.timeout(stalled_s):
                await self.response.write(data or self._keep_alive)
        except TimeoutError as exc:
            log.warning("client_stalled", stalled_s=stalled_s)
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionAbortedError(f"nothing was read for {stalled_s:g} s") from exc


async def streamed(
    request: web.Request,
    chunks: AsyncGenerator[bytes, None],
    *,
    error_event: Callable[[BrigadeError], bytes],
    headers: Mapping[str, str] = SSE_HEADERS,
    keep_alive: bytes = KEEP_ALIVE,
) -> web.StreamResponse:
    """Answer with `chunks` (an empty one where nothing has come for `KEEP_ALIVE_S`) as they come.

    An error after the first is said by `error_event` in the stream, and ends it.
    """
    stream = Stream(request, headers=headers, keep_alive=keep_alive)
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                await stream.write(chunk)
    except BrigadeError as error:
        if not stream.response.prepared:
            raise
        log.info("stream_failed", path=request.path[:200], **error_fields(error))
        await stream.write(error_event(error))
    await stream.response.write_eof()
    return stream.response
