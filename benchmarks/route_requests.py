"""The same request for a route again and again, over connections that are kept, at little cost to who sends it.

A client library takes as much processor time for a request as the coordinator does, on the same cores: a queue that
forms in it would be measured as the coordinator's. Here a request is bytes that are made once.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, field

from protocol.codec import encode_json
from protocol.compatibility import VERSION_HEADER
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import RouteRequest
from protocol.tls import COORDINATOR_NAME, client_context
from tests.support.coordinators import bearer

_END = b"\r\n\r\n"
_MAX_CONNECTIONS = 200
"""A coordinator takes 256 of one address (`protocol.guarded_site`), and refuses more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteAnswer:
    """What came back."""

    status: int
    body: bytes


@dataclass(slots=True, kw_only=True)
class RouteRequests:
    """Connections to a coordinator: one for each request that is under way, used again after it.

    Where it is slower than it is asked, requests wait here for a connection.
    """

    port: int
    ca_pem: str
    key: str
    request: RouteRequest
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONNECTIONS))
    _bytes: bytes = b""
    _context: ssl.SSLContext | None = None

    async def __aenter__(self) -> RouteRequests:
        self._context, body = client_context(self.ca_pem), encode_json(self.request)
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            VERSION_HEADER: PROTOCOL_VERSION,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        } | bearer(self.key)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._bytes = f"POST /v1/routes HTTP/1.1\r\n{lines}\r\n".encode() + body
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, writer in self._idle:
            writer.close()
        for _, writer in self._idle:
            with suppress(OSError):
                await writer.wait_closed()
        self._idle.clear()

    async def ask(self) -> RouteAnswer:
        """Send the request, and wait for the answer.

        Raises:
            OSError, asyncio.IncompleteReadError: the coordinator went away.
        """
        async with self._places:
            reader, writer = self._idle.pop() if self._idle else await self._opened()
            writer.write(self._bytes)
            head = await reader.readuntil(_END)
            status, length = _understood(head)
            body = await reader.readexactly(length)
            self._idle.append((reader, writer))
            return RouteAnswer(status=status, body=body)

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self._context, server_hostname=COORDINATOR_NAME
        )


def _understood(head: bytes) -> tuple[int, int]:
    """Status, and length of the body."""
    first, *lines = head.decode("latin-1").split("\r\n")
    lengths = [line.split(":", 1)[1] for line in lines if line.lower().startswith("content-length:")]
    if not lengths:
        raise ValueError(f"an answer without a length: {first}")
    return int(first.split(" ", 2)[1]), int(lengths[0])
