"""One WebSocket of the data plane, whoever opened it: frames in, frames out, and the sessions that use it.

Two ways out. `send` writes at once and waits while the peer reads too slowly: decode steps and fed tokens, where
every microsecond is in the loop. `post` never waits: what tells, what streams and what is big goes into a bounded
outbox with a writer task of its own, so that a slow reader holds nobody up. Where several sessions use a connection
their steps go that way too: those of one batch are there at once, and small frames that wait go as one message,
which costs both ends half as much as one message each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import aiohttp
import structlog
from aiohttp import web

from protocol.compatibility import takes_joined_frames, understood_by
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, HopLostError, OverloadedError, ProtocolError
from protocol.frames import MAX_JOINED_BYTES, Frame, decode_frames, encode_frame
from protocol.ids import SessionId, WorkerId
from protocol.messages import PROTOCOL_VERSION, DataMessage, Token
from worker.link_meter import BIG_FRAME_BYTES, LinkMeter
from worker.wire import WireChoice

log = structlog.get_logger(__name__)

PING_S = 4.0
"""A silent peer is pinged after so long; if it hasn't answered after half of that, it is gone: 6 s at most."""
CLOSE_S = 2.0
"""How long a closing handshake may take."""
MAX_QUEUED_TOKENS = 1024
MAX_QUEUED_MESSAGES = 2 * MAX_QUEUED_TOKENS
"""Room beyond the tokens for what ends sessions; who lets that fill up too reads nothing at all."""
MAX_DIRECT_BYTES = BIG_FRAME_BYTES
"""What the transport's buffer takes without making the writer wait."""

Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class ConnectionUser(Protocol):
    """A session, as far as its connections know it."""

    def connection_lost(self, connection: Connection) -> None:
        """Hear, once, that nothing more comes or goes."""
        ...


class Connection:
    """A WebSocket and who is at its other end. `run` has to be awaited by whoever owns it."""

    def __init__(
        self,
        socket: Socket,
        *,
        peer: WorkerId | None,
        label: str,
        version: str = PROTOCOL_VERSION,
        wire: WireChoice = "exact",
    ) -> None:
        self.peer = peer
        """The worker that verified itself; None for a client."""
        self.label = label
        self.version = version
        """That the peer speaks."""
        self.wire = wire
        """How hidden states may go to it."""
        self.users: dict[SessionId, ConnectionUser] = {}
        self.idle_since_s: float = asyncio.get_running_loop().time()
        self.is_closed = False
        self.meter = LinkMeter()
        self._socket = socket
        self._outbox: deque[bytes] = deque()
        self._wake_writer: asyncio.Event = asyncio.Event()
        self._is_written = asyncio.Event()
        """Set while nothing waits in the outbox."""
        self._is_written.set()
        self._joins = takes_joined_frames(version)
        self._wants_ping = False
        self._reader: asyncio.Task[None] | None = None
        self._is_aborted = False
        self._close_code = aiohttp.WSCloseCode.OK

    async def run(self, handle: Callable[[Frame], None], *, first_message_s: float | None = None) -> None:
        """Read frames until the connection ends, then tell its users. `handle` must not wait.

        A `BrigadeError` out of `handle`, or bytes that are no frame, close the connection.
        """
        async with asyncio.TaskGroup() as tasks:
            self._reader = asyncio.current_task()
            writer = tasks.create_task(self._write(), name=f"write {self.label}")
            try:
                await self._read(handle, first_message_s)
            finally:
                self.is_closed = True
                self._is_written.set()
                writer.cancel()
                for user in tuple(self.users.values()):
                    user.connection_lost(self)
                await self._close()

    async def send(self, message: DataMessage, payload: bytes | memoryview = b"") -> None:
        """Write a frame now; waits while the peer reads slower than we write. The caller holds the deadline.

        A big payload, and whatever several sessions say to a peer that takes joined frames, goes through the outbox
        without a wait (callers' credit bounds how much), so that the next chunk is computed while this one is on
        its way; what follows it then queues too, to stay in order.

        That the connection breaks meanwhile its users hear from its reader, which knows what the peer said last;
        an error out of here would look like the caller's own.

        Raises:
            HopLostError: the connection is gone, and its users have been told.
        """
        if self.is_closed:
            raise HopLostError(f"the connection to {self.label} is closed")
        if self._outbox or len(payload) > MAX_DIRECT_BYTES or (self._joins and len(self.users) > 1):
            self._queue(self._encoded(message, payload))
            return
        frame = self._encoded(message, payload)
        self.meter.n_bytes_sent += len(frame)
        with suppress(ConnectionError):
            await self._socket.send_bytes(frame)

    def post(self, message: DataMessage) -> None:
        """Queue a frame without payload; on a closed connection it is dropped, since its users were told.

        Raises:
            OverloadedError: `MAX_QUEUED_TOKENS` are queued already and this is one more.
        """
        if self.is_closed:
            return
        if isinstance(message, Token) and len(self._outbox) >= MAX_QUEUED_TOKENS:
            raise OverloadedError(
                f"{len(self._outbox)} tokens wait for {self.label}: whoever streams has to read faster"
            )
        if len(self._outbox) >= MAX_QUEUED_MESSAGES:
            if not self._is_aborted:
                log.warning("connection_aborted", label=self.label, reason="it reads nothing")
            self.abort()
            return
        self._queue(self._encoded(message))

    async def written(self) -> None:
        """Return when everything that was posted is written, or the connection is closed."""
        await self._is_written.wait()

    def measure(self) -> None:
        """Have the round trip measured, unless that is under way or other things wait to be written.

        Only for sockets that leave pongs to their reader (`autoping=False`).
        """
        if not self.meter.is_pinging and not self._outbox and not self.is_closed:
            self._wants_ping = True
            self._wake_writer.set()

    def add_user(self, session_id: SessionId, user: ConnectionUser) -> None:
        """A session uses this connection from now on.

        Raises:
            HopLostError: the connection is gone.
        """
        if self.is_closed:
            raise HopLostError(f"the connection to {self.label} is closed")
        self.users[session_id] = user

    def remove_user(self, session_id: SessionId) -> None:
        """A session no longer uses it. Idempotent."""
        if self.users.pop(session_id, None) is not None and not self.users:
            self.idle_since_s = asyncio.get_running_loop().time()

    def is_idle(self, now_s: float, idle_s: float) -> bool:
        """Whether no session has used it for `idle_s` seconds of the loop's clock."""
        return not self.users and now_s - self.idle_since_s >= idle_s

    def abort(self) -> None:
        """Have `run` end: no more frames, users are told. Idempotent, doesn't wait."""
        if self._reader is not None and not self._is_aborted and not self.is_closed:
            self._is_aborted = True
            self._reader.cancel()

    def _encoded(self, message: DataMessage, payload: bytes | memoryview = b"") -> bytes:
        """The frame as the peer's version has it."""
        if self.version != PROTOCOL_VERSION:
            message = understood_by(message, self.version)
        return encode_frame(message, payload)

    def _queue(self, frame: bytes) -> None:
        self._outbox.append(frame)
        self._is_written.clear()
        self._wake_writer.set()

    async def _read(self, handle: Callable[[Frame], None], first_message_s: float | None) -> None:
        try:
            await self._read_frames(handle, first_message_s)
        except TimeoutError:
            log.info("connection_silent", label=self.label, seconds=first_message_s)
        except ConnectionError:
            log.info("connection_lost", label=self.label)  # while a ping was answered
        except BrigadeError as exc:
            self._close_code = aiohttp.WSCloseCode.PROTOCOL_ERROR
            log.warning("connection_refused", label=self.label, **error_fields(exc))
        except asyncio.CancelledError:
            if not self._is_aborted:
                raise
            if self._reader is not None:
                self._reader.uncancel()
        except Exception:  # the connection's outermost edge: what one peer sent must not end the others
            self._close_code = aiohttp.WSCloseCode.INTERNAL_ERROR
            log.exception("connection_failed", label=self.label)

    async def _read_frames(self, handle: Callable[[Frame], None], first_message_s: float | None) -> None:
        async with asyncio.timeout(first_message_s):
            message = await self._socket.receive()
        while True:
            match message.type:
                case aiohttp.WSMsgType.BINARY:
                    for frame in decode_frames(message.data):
                        if not self._is_aborted:
                            handle(frame)
                case aiohttp.WSMsgType.PING:
                    await self._socket.pong(message.data)
                case aiohttp.WSMsgType.PONG:
                    self.meter.answered(message.data, asyncio.get_running_loop().time())
                case _:
                    break
            message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            raise ProtocolError("a text message; the data plane speaks binary frames")

    async def _write(self) -> None:
        now_s = asyncio.get_running_loop().time
        try:
            while True:
                await self._wake_writer.wait()
                self._wake_writer.clear()
                if self._wants_ping:
                    self._wants_ping = False
                    await self._socket.ping(self.meter.round_trip_begins(now_s()))
                while self._outbox:
                    message, began_s = self._next_message(), now_s()
                    await self._socket.send_bytes(message)
                    if (ping := self.meter.sent(len(message), began_s, now_s())) is not None:
                        await self._socket.ping(ping)
                self._is_written.set()
        except ConnectionError:
            self.abort()

    def _next_message(self) -> bytes:
        """The frame that has waited longest, with those behind it as far as they go along."""
        frames, n_bytes = [self._outbox.popleft()], 0
        while self._joins and self._outbox:
            n_bytes += len(frames[-1])
            if n_bytes + len(self._outbox[0]) > MAX_JOINED_BYTES:
                break
            frames.append(self._outbox.popleft())
        return frames[0] if len(frames) == 1 else b"".join(frames)

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(2 * CLOSE_S):
                await self._socket.close(code=self._close_code)
        except (TimeoutError, ConnectionError):
            log.info("connection_close_slow", label=self.label)
