"""HTTP connections whose sockets are closed when the session that made them is."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.tracing import Trace

CLOSED = "the client was closed while this was under way: keep it open until all its calls have their answers"


class ClosingConnector(aiohttp.TCPConnector):
    """Closing it ends every connection that it made, and returns when their sockets are closed.

    aiohttp's own forgets a WebSocket when it is closed, while TLS may still wait for the peer's goodbye: a loop
    that ends meanwhile leaves the socket to the garbage collector.
    """

    def __init__(
        self,
        *,
        ssl: ssl.SSLContext | aiohttp.Fingerprint | bool = True,
        limit: int = 100,
        force_close: bool = False,
    ) -> None:
        """The arguments are aiohttp's."""
        super().__init__(ssl=ssl, limit=limit, force_close=force_close)
        self._made: dict[asyncio.Future[None], asyncio.Transport] = {}
        """By what is done when the connection is lost."""

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> ResponseHandler:
        made = await super()._create_connection(req, traces, timeout)
        if made.transport is not None and made.closed is not None:
            self._made[made.closed] = made.transport
            made.closed.add_done_callback(self._forget)
        return made

    def _forget(self, lost: asyncio.Future[None]) -> None:
        del self._made[lost]
        if not lost.cancelled():
            lost.exception()  # whoever used the connection was told; asyncio complains of what nobody looks at

    async def close(self, *, abort_ssl: bool = False) -> None:
        """What isn't sent by now is lost. Nothing that a peer does, or leaves undone, delays this."""
        lost = tuple(self._made)
        for transport in self._made.values():
            transport.abort()
        await super().close(abort_ssl=abort_ssl)
        if lost:
            await asyncio.wait(lost)
