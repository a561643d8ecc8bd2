"""Connections to other workers: opened when a session first needs one, shared by all, closed when idle."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import partial

import aiohttp

from protocol.errors import HopLostError, ProtocolError
from protocol.frames import MAX_FRAME_BYTES, Frame
from protocol.ids import WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.tls import client_context, worker_name
from worker.connections import CLOSE_S, PING_S, Connection
from worker.enrolment import Credentials, CredentialsHolder

DATA_PATH = "/v1/data"
VERSION_HEADER = "Brigade-Protocol"
DIAL_S = 5.0
"""How long a connection may take to be made; less than the client waits before it looks for another route."""


class Peers:
    """Outgoing connections by worker id. Connections live in the task group of whoever owns this."""

    def __init__(
        self,
        *,
        credentials: CredentialsHolder,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.handle: Callable[[Connection, Frame], None] = _refuse_early
        """Takes the frames that come back; set once by the owner, before the first connection."""
        self._credentials = credentials
        self._tasks = tasks
        self._connections: dict[WorkerId, Connection] = {}
        self._dialling: dict[WorkerId, asyncio.Lock] = {}
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            auto_decompress=False,
            trust_env=False,
        )
        self._context: tuple[Credentials, ssl.SSLContext] | None = None

    @property
    def n_connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def connection(self, worker_id: WorkerId, url: str) -> Connection:
        """The connection to a worker, opened now if there is none. `add_user` follows without waiting in between.

        Raises:
            HopLostError: nobody answers there, or somebody else than `worker_id`.
        """
        lock = self._dialling.setdefault(worker_id, asyncio.Lock())
        async with lock:
            connection = self._connections.get(worker_id)
            if connection is None or connection.is_closed:
                connection = await self._dial(worker_id, url)
            return connection

    def close_idle(self, now_s: float, idle_s: float) -> None:
        """Close those that no session has used for `idle_s` seconds of the loop's clock."""
        for connection in tuple(self._connections.values()):
            if connection.is_idle(now_s, idle_s):
                self._forget(connection)
                connection.abort()

    async def close(self) -> None:
        """End all connections; their tasks end soon after."""
        for connection in tuple(self._connections.values()):
            connection.abort()
        await self._http.close()

    async def _dial(self, worker_id: WorkerId, url: str) -> Connection:
        try:
            async with asyncio.timeout(DIAL_S):
                socket = await self._http.ws_connect(
                    url.rstrip("/") + DATA_PATH,
                    ssl=await self._tls(),
                    server_hostname=worker_name(worker_id),
                    headers={VERSION_HEADER: PROTOCOL_VERSION},
                    max_msg_size=MAX_FRAME_BYTES,
                    heartbeat=PING_S,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
            raise HopLostError(
                f"worker {worker_id} can't be reached at {url} ({type(exc).__name__}): ask for another route"
            ) from exc
        connection = Connection(socket, peer=worker_id, label=f"worker {worker_id}")
        self._connections[worker_id] = connection
        self._tasks.create_task(self._run(connection), name=f"peer {worker_id}")
        return connection

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run(partial(self.handle, connection))
        finally:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if connection.peer is not None and self._connections.get(connection.peer) is connection:
            del self._connections[connection.peer]
            self._dialling.pop(connection.peer, None)

    async def _tls(self) -> ssl.SSLContext:
        """Made again when the credentials were renewed; reading certificates is for a thread."""
        current = self._credentials.current
        if self._context is None or self._context[0] is not current:
            context = await asyncio.to_thread(client_context, current.ca_pem, current.certificate, current.key)
            self._context = (current, context)
        return self._context[1]


def _refuse_early(connection: Connection, _frame: Frame) -> None:
    raise ProtocolError(f"{connection.label} spoke before anybody listened")
