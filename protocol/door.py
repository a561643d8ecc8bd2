"""Where connections come in: sockets that listen, and so many TLS handshakes under way for one address.

asyncio's own server counts nobody before a handshake is done, and tells no one who they are. Here who has too many
under way is closed unheard, at the cost of one `accept`: before TLS there is nothing that could be said to him.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import structlog

from protocol.host_names import rate_key

log = structlog.get_logger(__name__)

Refusal = Literal["handshakes", "connections"]
"""Of what an address had too many."""

BACKLOG = 256
ACCEPTED_AT_ONCE = 32
"""Then the event loop comes round: in a flood there is always one more."""
ACCEPT_AGAIN_S = 1.0
"""After the system refused, mostly because all of its file descriptors are in use."""


class Door:
    """Accepts connections for `connection`'s protocols, over TLS if there is a context, until it is closed."""

    def __init__(
        self,
        connection: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        *,
        max_handshakes: int,
        handshake_s: float,
        goodbye_s: float,
        n_refused: Counter[Refusal],
    ) -> None:
        """`goodbye_s`: for TLS's own end; `n_refused` is counted up. Without TLS nobody is refused here."""
        self._connection = connection
        self._context = context
        self._max_handshakes = max_handshakes
        self._deadlines = (
            {} if context is None else {"ssl_handshake_timeout": handshake_s, "ssl_shutdown_timeout": goodbye_s}
        )
        self._n_refused = n_refused
        self._under_way: Counter[str] = Counter()
        self._told: set[str] = set()
        """Addresses that the log has named since they had none under way."""
        self._not_begun: set[socket.socket] = set()
        """Accepted, and nobody has them yet who would close them."""
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting: set[asyncio.Task[None]] = set()
        """On Windows' own loop, one for each socket that listens."""
        self._again: dict[socket.socket, asyncio.TimerHandle] = {}
        """When those will be listened to again that the system refused to accept from."""
        self.sockets: tuple[socket.socket, ...] = ()
        """Those that listen."""

    def open(self, sockets: tuple[socket.socket, ...]) -> None:
        """Accept what comes to bound sockets, which are the door's from now on. OSError: one can't listen."""
        self.sockets = sockets
        try:
            for listening in sockets:
                listening.settimeout(0.0)
                listening.listen(BACKLOG)
        except OSError:
            self.close()
            raise
        for listening in sockets:
            self._listen_to(listening)

    def close(self) -> None:
        """Let nobody in any more, and end the handshakes that are under way.

        Who only just came without TLS is let in: uvloop tells no protocol that its connection is lost when it is
        cut off then.
        """
        for again in self._again.values():
            again.cancel()
        for task in self._accepting if self._context is None else self._accepting | self._handshakes:
            task.cancel()
        for listening in self.sockets:
            if listening.fileno() != -1:
                with suppress(NotImplementedError):
                    asyncio.get_running_loop().remove_reader(listening.fileno())
                listening.close()

    async def wait_closed(self) -> None:
        """Until no handshake is under way; after `close`."""
        if tasks := self._handshakes | self._accepting:
            await asyncio.wait(tasks)

    def _listen_to(self, listening: socket.socket) -> None:
        try:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening)
        except NotImplementedError:
            task = asyncio.ensure_future(self._accept_each(listening))  # noqa: TID251 - `close` ends it
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    def _accept(self, listening: socket.socket) -> None:
        """Let in who waits there. Not `sock_accept`: who had come when that is cancelled is closed by nobody."""
        for _ in range(ACCEPTED_AT_ONCE if listening.fileno() != -1 else 0):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:  # who came has gone again
                continue
            except OSError as exc:
                _say_failed(exc)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening.fileno())  # or it would be called again at once, and again
                self._again[listening] = loop.call_later(ACCEPT_AGAIN_S, self._listen_to, listening)
                return
            self._let_in(accepted, rate_key(str(address[0])))

    async def _accept_each(self, listening: socket.socket) -> None:
        """As `_accept`, on a loop that doesn't say who waits: Windows' own."""
        while True:
            try:
                accepted, address = await asyncio.get_running_loop().sock_accept(listening)
            except ConnectionError:
                continue
            except OSError as exc:
                _say_failed(exc)
                await asyncio.sleep(ACCEPT_AGAIN_S)
            else:
                self._let_in(accepted, rate_key(str(address[0])))

    def _let_in(self, accepted: socket.socket, address: str) -> None:
        if self._context is not None and self._under_way[address] >= self._max_handshakes:
            self._n_refused["handshakes"] += 1
            if address not in self._told:
                self._told.add(address)
                log.warning("handshake_refused", remote=address, n_handshakes=self._max_handshakes)
            accepted.close()
            return
        accepted.settimeout(0.0)
        self._not_begun.add(accepted)
        self._under_way[address] += 1
        handshake = asyncio.ensure_future(self._greet(accepted))  # noqa: TID251 - `close` ends it
        self._handshakes.add(handshake)
        handshake.add_done_callback(lambda task: self._forget(task, accepted, address))

    async def _greet(self, accepted: socket.socket) -> None:
        """Until the connection's protocol has it, or the handshake has failed."""
        self._not_begun.discard(accepted)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection, accepted, ssl=self._context, **self._deadlines
            )
        except OSError:  # no TLS, not in time, or gone; the transport has closed it
            pass
        except Exception:  # of ours: one stranger's, and the others' go on
            log.exception("handshake_broke")
            accepted.close()

    def _forget(self, task: asyncio.Task[None], accepted: socket.socket, address: str) -> None:
        self._handshakes.discard(task)
        if accepted in self._not_begun:  # cancelled before; later on its transport closes it, after TLS's own end
            self._not_begun.discard(accepted)
            accepted.close()
        self._under_way[address] -= 1
        if not self._under_way[address]:
            del self._under_way[address]
            self._told.discard(address)


def _say_failed(exc: OSError) -> None:
    log.warning("accept_failed", reason=exc.strerror or type(exc).__name__)


async def bound_sockets(host: str | None, port: int) -> tuple[socket.socket, ...]:
    """Sockets bound to all addresses of a host, of this machine without one. OSError: one can't be had."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    wanted = tuple(dict.fromkeys((family, address) for family, _, _, _, address in found))
    sockets: list[socket.socket] = []
    try:
        for family, address in wanted:
            try:
                sockets.append(socket.create_server(address, family=family))
            except OSError as exc:  # a machine without IPv6 names its address; one of all has to be had
                is_last = (family, address) == wanted[-1] and not sockets
                if exc.errno != errno.EAFNOSUPPORT or is_last:
                    raise
    except OSError:
        for each in sockets:
            each.close()
        raise
    return tuple(sockets)
