"""Answers on their way to one client: written as they come, streams kept alive, given up if nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from client.gateway.keys import CONFIG, GATE
from client.gateway.traced import TimingComments
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, InternalError

log = structlog.get_logger(__name__)

KEEP_ALIVE_S = 10.0
"""Without a word: proxies cut silent connections after 30 to 60 s."""
KEEP_ALIVE = b": keep-alive\n\n"
EVENT_STREAM = "text/event-stream"
SSE_HEADERS = {"Content-Type": f"{EVENT_STREAM}; charset=utf-8", "X-Accel-Buffering": "no"}
"""The second asks nginx not to hold the events back."""
DEFECT = "something went wrong in the gateway; its log has the details"
PIECE_BYTES = 2**16
"""Whole answers over this are written in pieces of it, each with a deadline of its own."""


class Stream:
    """The body of one answer. It begins with its first bytes: what fails before is answered with a status."""

    def __init__(
        self,
        request: web.Request,
        *,
        headers: Mapping[str, str] = SSE_HEADERS,
        keep_alive: bytes = KEEP_ALIVE,
        status: int = 200,
    ) -> None:
        self._request = request
        self._keep_alive = keep_alive
        self.response = web.StreamResponse(headers=dict(headers), status=status)

    async def write(self, data: bytes) -> None:
        """Send this, or a word to keep the connection if it is empty.

        Raises:
            ConnectionError: the client has gone, or doesn't read.
        """
        if not self.response.prepared:
            await self.response.prepare(self._request)
        await self._read(self.response.write(data or self._keep_alive))

    async def end(self) -> None:
        """Say that this was all, and wait until most of it was taken. ConnectionError: as `write`."""
        await self._read(self.response.write_eof())

    async def _read(self, sending: Awaitable[None]) -> None:
        stalled_s = self._request.app[CONFIG].stalled_s
        try:
            async with asyncio.timeout(stalled_s):
                await sending
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
    comments = TimingComments(request) if headers is SSE_HEADERS else None
    try:
        with request.app[GATE].told():
            async with aclosing(chunks):
                async for chunk in chunks:
                    await stream.write(chunk if comments is None else comments.new() + chunk)
    except BrigadeError as error:
        if not stream.response.prepared:
            raise
        log.info("stream_failed", path=request.path[:200], **error_fields(error))
        await stream.write(error_event(error))
    except ConnectionError:
        raise  # the caller went away, or was given up
    except Exception:
        if not stream.response.prepared:
            raise
        log.exception("stream_broke", path=request.path[:200])
        await stream.write(error_event(InternalError(DEFECT)))
    await stream.end()
    return stream.response


@web.middleware
async def send_in_pieces(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send whole answers that are long as streams are: who doesn't read them would keep them in memory for ever."""
    answer = await handler(request)
    if not isinstance(answer, web.Response) or request.method == hdrs.METH_HEAD:
        return answer
    body = answer.body
    if not isinstance(body, bytes) or len(body) <= PIECE_BYTES:
        return answer
    stream = Stream(request, headers=answer.headers, status=answer.status)
    stream.response.content_length = len(body)
    for start in range(0, len(body), PIECE_BYTES):
        await stream.write(body[start : start + PIECE_BYTES])
    await stream.end()
    return stream.response
