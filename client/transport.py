"""Connections to workers: one WebSocket each, shared by all generations of a `Client` and kept between them.

A connection hands what a worker says to the inbox of the session it is about. What goes wrong on the wire leaves
here as an error of `protocol/errors.py`. This module knows nothing of generations.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

import aiohttp
from aiohttp import ClientWebSocketResponse, ClientWSTimeout, WSMsgType

from client.dial_errors import CONNECT_TIMEOUT_S, DialTurns, dial_errors
from client.legs import Ends, Legs
from client.own_address import own_address
from client.pings import Pings
from protocol.client_legs import ClientLeg
from protocol.compatibility import VERSION_HEADER, spoken_version, understood_by
from protocol.errors import BrigadeError, ConfigError, HopLostError, ProtocolError
from protocol.frames import (
    MAX_CLIENT_PAYLOAD_BYTES,
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    Frame,
    decode_frames,
    encode_frame,
)
from protocol.http_connector import CLOSED, ClosingConnector, connecting_reason
from protocol.ids import SessionId, WorkerId
from protocol.messages import (
    PROTOCOL_VERSION,
    AttachTail,
    CloseSession,
    Credit,
    FeedToken,
    OpenSession,
    SessionEnded,
    SessionOpened,
    Step,
    Token,
    ToWorker,
)
from protocol.tls import client_context, worker_name

CLOSE_TIMEOUT_S = 2.0
PING_S = 6.0
"""A worker that vanished without a word (its machine lost power) is noticed after this and half as much again: by
name, before its silence counts as a stall of nobody in particular."""
_MAX_MESSAGE_BYTES = PREFIX_BYTES + MAX_HEADER_BYTES
"""Without a payload: only a private session's tail has one for a client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost:
    """The connection to a worker ended; nothing more will come from it."""

    error: BrigadeError


@dataclass(frozen=True, slots=True)
class ReturnedStates:
    """Hidden states from the tail of a private session."""

    step: Step
    payload: bytes | memoryview


Happening: TypeAlias = SessionOpened | Token | SessionEnded | ConnectionLost | Credit | ReturnedStates


class Inbox:
    """What is said about one session, by whom, in order.

    Never makes a connection wait (other sessions share it): it holds what an honest session can say at most,
    and a session that says more has failed.
    """

    def __init__(self, session_id: SessionId, *, max_tokens: int, takes_states: bool = False) -> None:
        """`takes_states`: it is of a private session, whose steps and credit count as its tokens."""
        self.session_id = session_id
        self.takes_states = takes_states
        # besides its tokens: opened, ended and lost, from two workers each
        self._queue: asyncio.Queue[tuple[WorkerId, Happening]] = asyncio.Queue(max_tokens + 8)

    def put(self, worker_id: WorkerId, happening: Happening) -> None:
        """Add what `worker_id` said."""
        if self._queue.full():
            self._queue.get_nowait()
            error = ProtocolError(f"worker {worker_id} sent more tokens than were asked for")
            happening = ConnectionLost(error=error)
        self._queue.put_nowait((worker_id, happening))

    async def get(self) -> tuple[WorkerId, Happening]:
        """The next thing, when it comes. The caller has the deadline."""
        return await self._queue.get()


class Connection:
    """One worker's WebSocket. Made by a `ConnectionPool`, which also runs `read`."""

    def __init__(self, worker_id: WorkerId, websocket: ClientWebSocketResponse, legs: Legs) -> None:
        """`legs`: told how far the worker is."""
        self.worker_id = worker_id
        self._pings = Pings(worker_id, websocket, legs)
        headers = websocket._response.headers  # noqa: SLF001 - aiohttp has no public way to them
        self._version = spoken_version(headers)
        self._websocket = websocket
        self._inboxes: dict[SessionId, Inbox] = {}
        self._lost: BrigadeError | None = None

    @property
    def is_usable(self) -> bool:
        """Whether messages can still be sent."""
        return self._lost is None and not self._websocket.closed

    @contextmanager
    def delivering_to(self, inbox: Inbox) -> Iterator[None]:
        """Put what comes for the inbox's session into it; later stragglers are dropped."""
        self._inboxes[inbox.session_id] = inbox
        if self._lost is not None:
            inbox.put(self.worker_id, ConnectionLost(error=self._lost))
        try:
            yield
        finally:
            self._inboxes.pop(inbox.session_id, None)

    async def send(self, message: ToWorker | Credit, payload: bytes | memoryview = b"") -> None:
        """Send one frame; waits while the worker doesn't read. The caller has the deadline.

        Raises:
            HopLostError: the connection is gone.
        """
        if self._lost is not None:
            raise self._lost
        try:
            if self._version != PROTOCOL_VERSION:
                message = understood_by(message, self._version)
            await self._websocket.send_bytes(encode_frame(message, payload))
        except (aiohttp.ClientError, OSError) as exc:
            raise HopLostError(
                f"the connection to worker {self.worker_id} is lost: {connecting_reason(exc)}"
            ) from exc

    async def measure(self) -> None:
        """Have the round trip measured; the answers aren't waited for."""
        await self._pings.begin()

    async def read(self) -> None:
        """Deliver what comes until the connection ends. Never raises: the inboxes learn why it ended."""
        error: BrigadeError = HopLostError(f"worker {self.worker_id} closed the connection")
        try:
            async for message in self._websocket:
                match message.type:
                    case WSMsgType.BINARY:
                        for frame in decode_frames(message.data):
                            self._deliver(frame)
                    case WSMsgType.PING:
                        await self._websocket.pong(message.data)
                    case WSMsgType.PONG:
                        await self._pings.take_pong(bytes(message.data))
                    case _:
                        raise ProtocolError(f"worker {self.worker_id} sent a message that is not binary")
        except BrigadeError as exc:
            error = exc
        except (aiohttp.ClientError, OSError) as exc:
            error = HopLostError(f"the connection to worker {self.worker_id} is lost: {connecting_reason(exc)}")
        finally:
            self._lost = error
            for inbox in self._inboxes.values():
                inbox.put(self.worker_id, ConnectionLost(error=error))
            await self.close()

    async def close(self) -> None:
        """Say goodbye; the worker frees whatever of ours still runs there. Repeating it does no harm."""
        with suppress(aiohttp.ClientError, OSError):
            await self._websocket.close()

    def _deliver(self, frame: Frame) -> None:
        message = frame.message
        inbox = self._inboxes.get(message.session_id)  # if none: a straggler of a session that is over here
        match message:
            case SessionOpened() | Token() | SessionEnded():
                if inbox is not None:
                    inbox.put(self.worker_id, message)
            case Credit():
                if inbox is not None and inbox.takes_states:  # any other session sends one step, which needs none
                    inbox.put(self.worker_id, message)
            case Step() if inbox is None or inbox.takes_states:
                if inbox is not None:
                    inbox.put(self.worker_id, ReturnedStates(message, frame.payload))
            case OpenSession() | AttachTail() | Step() | FeedToken() | CloseSession():
                raise ProtocolError(f"worker {self.worker_id} sent a message that is meant for workers")


_Address: TypeAlias = tuple[WorkerId, str, bool]
"""Of a connection: which worker, where, and whether hidden states come by it."""


class ConnectionPool:
    """Connections by worker, dialled when first needed. Made by `connection_pool`."""

    def __init__(self, http: aiohttp.ClientSession, tls: ssl.SSLContext, readers: asyncio.TaskGroup) -> None:
        self._http = http
        self._tls = tls
        self._readers = readers
        self._connections: dict[_Address, Connection] = {}
        self._dialling: dict[_Address, DialTurns] = {}
        self._legs = Legs()
        self._is_closed = False

    async def connection(self, worker_id: WorkerId, url: str, *, takes_states: bool = False) -> Connection:
        """The connection to this worker at this address, dialled now, once for all who want it, if there is none.

        Private sessions have connections of their own, which take hidden states in (`takes_states`).

        Raises:
            ConfigError: the pool is closed.
            HopLostError: nobody answers there, or not as a worker does.
            UnauthenticatedError: whoever answers is not this worker.
            ProtocolVersionError: it speaks another version.
        """
        if self._is_closed:
            raise ConfigError(CLOSED)
        key = (worker_id, url, takes_states)
        async with self._dialling.setdefault(key, DialTurns()).taken():
            known = self._connections.get(key)
            if known is not None and known.is_usable:
                return known
            dialled = await self._dial(worker_id, url, takes_states=takes_states)
            connection = Connection(worker_id, dialled, self._legs)
            self._connections[key] = connection
            self._readers.create_task(self._read(key, connection), name=f"read {worker_id}")
            self._legs.begin(worker_id, asyncio.get_running_loop().time(), _ends(dialled))
            await connection.measure()
            return connection

    def legs(self, *, takes_states: bool = False) -> tuple[ClientLeg, ...]:
        """How far workers are, for who asks for a route. Connections that weren't measured lately now are."""
        now_s = asyncio.get_running_loop().time()
        self._legs.leave(own_address)
        kept = [one for (_, _, kind), one in self._connections.items() if kind == takes_states and one.is_usable]
        for connection in kept:
            if self._legs.is_due(connection.worker_id, now_s):
                self._readers.create_task(connection.measure(), name=f"ping {connection.worker_id}")
        return self._legs.said({connection.worker_id for connection in kept}, now_s)

    async def close(self) -> None:
        """Close all connections, at the same time; there are no more from now on."""
        self._is_closed = True
        async with asyncio.TaskGroup() as closing:
            for connection in self._connections.values():
                closing.create_task(connection.close(), name=f"close {connection.worker_id}")

    async def _read(self, key: _Address, connection: Connection) -> None:
        """Read until it ends; then it isn't kept, since a worker that comes back may have another address."""
        await connection.read()
        if self._connections.get(key) is connection:
            del self._connections[key]

    async def _dial(self, worker_id: WorkerId, url: str, *, takes_states: bool) -> ClientWebSocketResponse:
        if not url.startswith("https://"):
            raise ProtocolError(f"the address of worker {worker_id} is {url[:200]!r}, which is not https://")
        with dial_errors(worker_id, url):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await self._http.ws_connect(
                    f"{url}/v1/data",
                    ssl=self._tls,
                    server_hostname=worker_name(worker_id),
                    headers={VERSION_HEADER: PROTOCOL_VERSION},
                    heartbeat=PING_S,
                    autoping=False,  # `read` sees the answers to our own pings
                    max_msg_size=_MAX_MESSAGE_BYTES + (MAX_CLIENT_PAYLOAD_BYTES if takes_states else 0),
                    timeout=ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
                )


def _ends(websocket: ClientWebSocketResponse) -> Ends | None:
    own, peer = websocket.get_extra_info("sockname"), websocket.get_extra_info("peername")
    return Ends(own=own[0], peer=peer[0]) if own and peer else None


@asynccontextmanager
async def connection_pool(ca_pem: str) -> AsyncIterator[ConnectionPool]:
    """Connections to workers of the cluster whose CA this is; all are closed at the end."""
    async with aiohttp.ClientSession(connector=ClosingConnector(), cookie_jar=aiohttp.DummyCookieJar()) as http:
        readers = asyncio.TaskGroup()
        await readers.__aenter__()
        pool = ConnectionPool(http, client_context(ca_pem), readers)
        try:
            yield pool
        finally:
            await pool.close()
            # by hand, since `async with` would wrap the caller's own exception in a group
            await readers.__aexit__(None, None, None)
