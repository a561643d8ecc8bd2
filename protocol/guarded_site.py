"""A port that strangers may reach: so many connections of one address, and only those that get somewhere.

Beside what aiohttp's own site does: TLS handshakes have a deadline, an address has a limit of them (`door`) and
of connections, and what is no HTTP is answered in a line, without a traceback in the log and without our library's
name and version.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter, deque
from contextlib import suppress
from typing import cast

import structlog
from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from protocol.background import uninterrupted
from protocol.codec import encode_json
from protocol.door import BACKLOG, Door, Refusal, bound_sockets
from protocol.errors import ErrorBody, InvalidRequestError, OverloadedError
from protocol.host_names import rate_key
from protocol.rest import ErrorAnswer

log = structlog.get_logger(__name__)

HANDSHAKE_S = 10.0
"""For TLS, from the first byte to the last: a slow link across the world needs two."""
IDLE_S = 15.0
"""How long a request's headers may take to come, and a connection without a request may stay."""
MAX_CONNECTIONS = 256
"""Of one address (of IPv6: one network). A rack of 60 machines behind one address has four each."""
MAX_HANDSHAKES = 128
"""Of one address, under way at once. After a restart that rack comes with two each; one takes 0.8 to
0.9 ms of CPU time, its first request included."""
LINGER_S = 2.0
"""For the rest of a body that isn't wanted any more: who is still sending it gets to read the answer."""
GOODBYE_S = 2.0
"""For TLS's own end of a connection that we close."""
RETRY_S = 1.0
"""Who has too many connections may come again after that."""

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "brigade",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer, files and sockets too. No CORS header is ever sent."""


class GuardedSite(web.BaseSite):
    """Serves a runner's application, over TLS if it is given any: on a bound socket, or on a host and port."""

    __slots__ = (
        "_bound",
        "_connections",
        "_counts",
        "_door",
        "_idle_s",
        "_is_empty",
        "_max_connections",
        "_max_handshakes",
        "_where",
        "n_refused",
    )

    def __init__(
        self,
        runner: web.AppRunner,
        ssl_context: ssl.SSLContext | None,
        *,
        bound: socket.socket | None = None,
        host: str | None = None,
        port: int | None = None,
        idle_s: float = IDLE_S,
        max_connections: int = MAX_CONNECTIONS,
        max_handshakes: int = MAX_HANDSHAKES,
    ) -> None:
        super().__init__(runner, ssl_context=ssl_context, backlog=BACKLOG)
        self._bound = bound
        self._where = (host, port or 0)
        self._idle_s = idle_s
        self._max_connections = max_connections
        self._max_handshakes = max_handshakes
        self.n_refused: Counter[Refusal] = Counter()
        """Connections, by what their address had too many of."""
        self._door: Door | None = None
        self._counts: Counter[str] = Counter()
        self._connections: set[_GuardedConnection] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def name(self) -> str:
        """What the runner tells this site from others by."""
        return f"{'http' if self._ssl_context is None else 'https'}://{self._bound or self._where}"

    async def start(self) -> None:
        """Listen. OSError: the address can't be used."""
        await super().start()
        sockets = (self._bound,) if self._bound is not None else await bound_sockets(*self._where)
        door = Door(
            self._protocol,
            self._ssl_context,
            max_handshakes=self._max_handshakes,
            handshake_s=HANDSHAKE_S,
            goodbye_s=GOODBYE_S,
            n_refused=self.n_refused,
        )
        door.open(sockets)
        self._door = door
        self._server = cast("asyncio.AbstractServer", door)  # aiohttp asks it to close, and for its sockets

    async def stop(self) -> None:
        """Let nobody in any more."""
        await super().stop()
        if self._door is not None:
            await self._door.wait_closed()

    async def close(self) -> None:
        """Clean the runner up, and wait until its connections are gone; who says no goodbye is cut.

        Done to its end: a loop that is closed before would leave them to whoever collects the garbage.
        """
        await uninterrupted(self._closed())

    async def _closed(self) -> None:
        await self._runner.cleanup()
        for is_last in (False, True):
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._is_empty.wait()
            if not is_last:
                for connection in tuple(self._connections):
                    connection.cut()

    def keep(self, connection: _GuardedConnection) -> None:
        """Know of a connection that was made."""
        self._connections.add(connection)
        self._is_empty.clear()

    def forget(self, connection: _GuardedConnection) -> None:
        """Know that it has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._is_empty.set()

    def _protocol(self) -> _GuardedConnection:
        server = self._runner.server
        assert server is not None, "a site is made of a runner that is set up"
        return _GuardedConnection(server, self, self._counts, self._max_connections, self._idle_s)

    def refuse(self, address: str) -> None:
        """Note that an address came with one connection too many."""
        self.n_refused["connections"] += 1
        log.warning("connection_refused", remote=address, n_connections=self._max_connections)


class _GuardedConnection(web.RequestHandler):
    """One connection, after its handshake."""

    __slots__ = ("_address", "_counts", "_made_on", "_max_connections", "_site")

    def __init__(
        self, server: web.Server, site: GuardedSite, counts: Counter[str], max_connections: int, idle_s: float
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=idle_s,
            lingering_time=LINGER_S,
            access_log=None,  # type: ignore[arg-type]  # as its own runner
        )
        self._site = site
        self._counts = counts
        self._max_connections = max_connections
        self._address: str | None = None
        self._made_on: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the address's connections; one too many is told so, and over before anything of it is read."""
        super().connection_made(transport)
        self._made_on = cast("asyncio.Transport", transport)  # TCP, or TLS over it
        self._site.keep(self)
        peer = transport.get_extra_info("peername")
        self._address = rate_key(str(peer[0])) if peer else ""
        self._counts[self._address] += 1
        if self._counts[self._address] > self._max_connections:
            self._site.refuse(self._address)
            self._made_on.write(_one_too_many(self._max_connections))
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it, and the address with its last one."""
        if self._address is not None:
            self._counts[self._address] -= 1
            if not self._counts[self._address]:
                del self._counts[self._address]
            self._address = None
        self._site.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Tell who reads a body that it has broken: aiohttp queues that behind the request, which waits on.

        There is no public way to either: `_broken_body` goes by private names, and without them a body that breaks
        is answered once its reader's own deadline is over, as aiohttp has it.
        """
        super().data_received(data)
        body = self._broken_body()
        if body is None:
            return
        self._messages.pop()  # the request's own answer says it
        body.set_exception(web.RequestPayloadError("the body isn't chunked as the headers say"))
        body.feed_eof()  # so that nobody waits for what follows
        self.close()  # after that answer: where the next request would begin nobody knows

    def _broken_body(self) -> StreamReader | None:
        """The body that isn't whole while the error that broke it is the last in the queue; None if there is none.

        In the queue are pairs of a message and its body: of a request, or of an error, which is no request.
        """
        queue = getattr(self, "_messages", None)
        if not isinstance(queue, deque) or not queue or isinstance(queue[-1][0], RawRequestMessage):
            return None
        read_now = getattr(getattr(self, "_current_request", None), "content", None)
        body = queue[-2][1] if len(queue) > 1 else read_now
        return body if isinstance(body, StreamReader) and not body.is_eof() else None

    def cut(self) -> None:
        """End it without TLS's goodbye."""
        if self._made_on is not None:  # aiohttp forgets its own when it closes it
            self._made_on.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or ended before it was whole; the rest is left to aiohttp, which logs it."""
        if not isinstance(exc, HttpProcessingError | ConnectionError):
            return super().handle_error(request, status, exc, message)
        log.info("request_broken", remote=request.remote, kind=type(exc).__name__)
        words = "this is not a request, or one whose line or headers are longer than 8 KB"
        body = encode_json(ErrorAnswer(error=ErrorBody(code=InvalidRequestError.code, message=words)))
        response = web.Response(status=status, body=body, content_type="application/json", headers=SECURITY_HEADERS)
        response.force_close()
        return response


def _one_too_many(n_connections: int) -> bytes:
    """An answer for whatever is asked: who hears nothing takes us for dead."""
    words = (
        f"{n_connections} connections of your address are open here, and more aren't taken: use those again, or "
        "wait for some of them to end"
    )
    error = OverloadedError(words, retry_after_s=RETRY_S).body()
    body = encode_json(ErrorAnswer(error=error))
    own = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Retry-After": f"{RETRY_S:.0f}",
        "Connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in (own | SECURITY_HEADERS).items())
    return f"HTTP/1.1 {OverloadedError.status} Service Unavailable\r\n{lines}\r\n".encode() + body


async def add_security_headers(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For an application's `on_response_prepare`."""
    response.headers.update(SECURITY_HEADERS)


def asked_hosts(request: web.BaseRequest) -> tuple[str, ...]:
    """The hosts that a request says it is for: in its header and, if it is there too, in its target."""
    header = request.headers.get(hdrs.HOST, "")
    if not header or request.host == header:
        return (header,)
    return header, request.url.authority
