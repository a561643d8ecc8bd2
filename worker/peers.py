"""Connections to other workers: opened when a session first needs one, shared by all, closed when idle."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import aiohttp
import structlog

from protocol.codec import check_version
from protocol.compatibility import VERSION_HEADER, spoken_version
from protocol.control_messages import LinkReport
from protocol.errors import BrigadeError, ConfigError, HopLostError, ProtocolError
from protocol.frames import MAX_FRAME_BYTES, Frame
from protocol.http_connector import ClosingConnector
from protocol.ids import WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.tls import client_context, worker_name
from worker.config import checked_url
from worker.connections import CLOSE_S, PING_S, Connection
from worker.enrolment import Credentials, CredentialsHolder
from worker.wire import WireChoice

log = structlog.get_logger(__name__)

DATA_PATH = "/v1/data"
DIAL_S = 5.0
"""How long a connection may take to be made; less than the client waits before it looks for another route."""
MAX_ROUND_TRIPS = 64
"""Peers whose round trips are told; a worker has a handful of neighbours."""


@dataclass(slots=True)
class _Slot:
    """What is known of one peer, as long as there is a connection or somebody who wants one."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while dialling."""
    n_waiting: int = 0
    n_dialled: int = 0
    connection: Connection | None = None
    failed_url: str = ""
    failure: str = ""
    """What came of the last dialling, at `failed_url`."""


class Peers:
    """Outgoing connections by worker id. Connections live in the task group of whoever owns this."""

    def __init__(
        self,
        *,
        credentials: CredentialsHolder,
        tasks: asyncio.TaskGroup,
        wire: WireChoice = "auto",
        met: Callable[[WorkerId, str], None] = lambda _worker_id, _version: None,
    ) -> None:
        """`met` is told of each worker that was dialled, and the version that it speaks."""
        self.handle: Callable[[Connection, Frame], None] = _refuse_early
        """Takes the frames that come back; set once by the owner, before the first connection."""
        self._credentials = credentials
        self._tasks = tasks
        self._wire = wire
        self._met = met
        self._slots: dict[WorkerId, _Slot] = {}
        self._open: set[Connection] = set()
        self._is_closed = False
        self._http = aiohttp.ClientSession(
            connector=ClosingConnector(limit=0, force_close=True),
            auto_decompress=False,
            trust_env=False,
        )
        self._context: tuple[Credentials, ssl.SSLContext] | None = None

    @property
    def n_connections(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def round_trips_s(self) -> dict[WorkerId, float]:
        """Measured seconds to the peers that there are connections to, at most `MAX_ROUND_TRIPS` of them."""
        measured = {
            connection.peer: connection.meter.round_trip_s
            for connection in self._open
            if connection.peer is not None and connection.meter.round_trip_s is not None
        }
        return dict(list(measured.items())[:MAX_ROUND_TRIPS])

    @property
    def links(self) -> dict[WorkerId, LinkReport]:
        """What went to the peers that there are connections to, at most `MAX_ROUND_TRIPS` of them."""
        meters = {connection.peer: connection.meter for connection in self._open if connection.peer is not None}
        return {
            peer: LinkReport(n_bytes_sent=meter.n_bytes_sent, bytes_per_s=meter.bytes_per_s or 0.0)
            for peer, meter in list(meters.items())[:MAX_ROUND_TRIPS]
        }

    def measure(self) -> None:
        """Have the round trips measured; soon after they are in `round_trips_s`."""
        for connection in self._open:
            connection.measure()

    async def written(self) -> None:
        """Return when everything that was posted to peers is written."""
        for connection in tuple(self._open):
            await connection.written()

    async def connection(self, worker_id: WorkerId, url: str) -> Connection:
        """The connection to a worker, opened now if there is none. `add_user` follows without waiting in between.

        Sessions that want the same worker at the same time wait for one dialling, and for its failure too.

        Raises:
            HopLostError: nobody answers there, or somebody else than `worker_id`.
        """
        slot = self._slots.setdefault(worker_id, _Slot())
        n_before = slot.n_dialled
        slot.n_waiting += 1
        try:
            async with slot.lock:
                if slot.connection is not None and not slot.connection.is_closed:
                    return slot.connection
                if slot.n_dialled > n_before and slot.failed_url == url:
                    raise HopLostError(slot.failure)
                return await self._dial_into(slot, worker_id, url)
        finally:
            slot.n_waiting -= 1
            self._tidy(worker_id)

    def close_idle(self, now_s: float, idle_s: float) -> None:
        """Close those that no session has used for `idle_s` seconds of the loop's clock."""
        for connection in tuple(self._open):
            if connection.is_idle(now_s, idle_s):
                self._forget(connection)
                connection.abort()

    async def close(self) -> None:
        """End all connections, and make no more; their tasks end soon after."""
        self._is_closed = True
        for connection in tuple(self._open):
            connection.abort()
        await self._http.close()

    async def _dial_into(self, slot: _Slot, worker_id: WorkerId, url: str) -> Connection:
        try:
            slot.connection = await self._dial(worker_id, url)
        except HopLostError as exc:
            slot.failed_url, slot.failure = url, exc.message
            slot.n_dialled += 1
            raise
        slot.failed_url = ""
        slot.n_dialled += 1
        return slot.connection

    async def _dial(self, worker_id: WorkerId, url: str) -> Connection:
        self._check_open()
        try:
            async with asyncio.timeout(DIAL_S):
                socket = await self._http.ws_connect(
                    checked_url(url, f"the address of worker {worker_id}").rstrip("/") + DATA_PATH,
                    ssl=await self._tls(),
                    server_hostname=worker_name(worker_id),
                    headers={VERSION_HEADER: PROTOCOL_VERSION},
                    max_msg_size=MAX_FRAME_BYTES,
                    heartbeat=PING_S,
                    autoping=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except ConfigError as exc:
            raise HopLostError(f"{exc.message}: ask for another route") from exc
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
            raise HopLostError(
                f"worker {worker_id} can't be reached at {url} ({type(exc).__name__}): ask for another route"
            ) from exc
        version = spoken_version(socket._response.headers)  # noqa: SLF001 - aiohttp has no public way to them
        try:
            self._check_open()
            check_version(version)
        except BrigadeError as exc:  # nobody else would end the new connection
            await socket.close()
            raise HopLostError(exc.message) from exc
        connection = Connection(
            socket, peer=worker_id, label=f"worker {worker_id}", version=version, wire=self._wire
        )
        self._open.add(connection)
        self._met(worker_id, version)
        self._tasks.create_task(self._run(connection), name=f"peer {worker_id}")
        return connection

    def _check_open(self) -> None:
        if self._is_closed:
            raise HopLostError("this worker is stopping: ask for another route")

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run(partial(self.handle, connection))
        except Exception:  # the connection's outermost edge: the worker's other connections go on
            log.exception("connection_broke", label=connection.label)
        finally:
            self._forget(connection)
            self._open.discard(connection)

    def _forget(self, connection: Connection) -> None:
        """Let nobody else use the connection."""
        assert connection.peer is not None  # its worker was named when it was dialled
        slot = self._slots.get(connection.peer)
        if slot is not None and slot.connection is connection:
            slot.connection = None
            self._tidy(connection.peer)

    def _tidy(self, worker_id: WorkerId) -> None:
        slot = self._slots.get(worker_id)
        if slot is not None and slot.connection is None and not slot.n_waiting:
            del self._slots[worker_id]

    async def _tls(self) -> ssl.SSLContext:
        """Made again when the credentials were renewed; reading certificates is for a thread."""
        current = self._credentials.current
        if self._context is None or self._context[0] is not current:
            context = await asyncio.to_thread(client_context, current.ca_pem, current.certificate, current.key)
            self._context = (current, context)
        return self._context[1]


def _refuse_early(connection: Connection, _frame: Frame) -> None:
    raise ProtocolError(f"{connection.label} spoke before anybody listened")
