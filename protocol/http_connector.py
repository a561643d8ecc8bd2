"""HTTP connections: made again if they are cut before TLS is done, closed when the session that made them is."""

from __future__ import annotations

import asyncio
import random
import ssl

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.tracing import Trace

from protocol.dialled_sockets import closed_once, new_socket

CLOSED = "the client was closed while this was under way: keep it open until all its calls have their answers"
CUT = (
    "it was cut before TLS was agreed on: too many connections come from this address at once, or no "
    "Brigade program listens there"
)
MAX_CUTS = 7
"""In a row. With the delays between them they take 3 to 6 s, in which a door (`protocol.door`) lets hundreds in."""
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 1.6


def was_cut(exc: BaseException) -> bool:
    """Whether the peer closed the connection in the middle of the TLS handshake, without a word."""
    if not isinstance(exc, aiohttp.ClientConnectorError) or isinstance(exc, aiohttp.ClientSSLError):
        return False
    return isinstance(exc.os_error, ConnectionResetError)


def connecting_reason(exc: BaseException) -> str:
    """Why there is no connection, in the system's words where it has any."""
    if was_cut(exc):
        return CUT
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__


class ClosingConnector(aiohttp.TCPConnector):
    """A connection that is cut before TLS is done was refused unheard, as too many at once are: it is made again.

    Closing it ends every connection that it made, and returns when their sockets are closed.

    aiohttp's own forgets a WebSocket when it is closed, while TLS may still wait for the peer's goodbye: a loop
    that ends meanwhile leaves the socket to the garbage collector.
    """

    def __init__(
        self,
        *,
        ssl: ssl.SSLContext | aiohttp.Fingerprint | bool = True,
        limit: int = 100,
        force_close: bool = False,
        max_cuts: int = MAX_CUTS,
    ) -> None:
        """The arguments are aiohttp's, but one.

        `max_cuts`: after so many in a row a connection has failed; 1 for whoever has other ways and tries those.
        """
        super().__init__(ssl=ssl, limit=limit, force_close=force_close, socket_factory=new_socket)
        self._made: dict[asyncio.Future[None], asyncio.Transport] = {}
        """By what is done when the connection is lost."""
        self._max_cuts = max_cuts

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> ResponseHandler:
        made = await self._connected(req, traces, timeout)
        if made.transport is not None and made.closed is not None:
            self._made[made.closed] = made.transport
            made.closed.add_done_callback(self._forget)
        return made

    async def _connected(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> ResponseHandler:
        for n_cuts in range(1, self._max_cuts):
            try:
                with closed_once():
                    return await super()._create_connection(req, traces, timeout)
            except aiohttp.ClientConnectorError as exc:
                if not was_cut(exc):
                    raise
            # never near 0: who was refused among many is refused again while they are let in
            longest_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0**n_cuts)
            await asyncio.sleep(random.uniform(longest_s / 2, longest_s))  # noqa: S311 - spreads, hides nothing
        with closed_once():
            return await super()._create_connection(req, traces, timeout)

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
