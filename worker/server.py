"""The worker's data plane: takes connections, owns sessions and peers, sweeps, drains, stops in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import structlog
from aiohttp import web

from protocol.background import uninterrupted
from protocol.codec import check_version
from protocol.compatibility import VERSION_HEADER, spoken_version
from protocol.control_messages import EndSessions, GenerationReport, LinkReport
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, DrainingError, OverloadedError, ProtocolVersionError
from protocol.frames import MAX_CLIENT_PAYLOAD_BYTES, MAX_FRAME_BYTES, MAX_HEADER_BYTES, PREFIX_BYTES
from protocol.ids import SessionId, WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.spans import NO_SPANS, SpanSink
from protocol.tls import peer_worker_id
from worker.connections import CLOSE_S, PING_S, Connection
from worker.cutting import PromptCutter
from worker.engine import Engine
from worker.enrolment import CredentialsHolder
from worker.holdings import Holdings
from worker.hop_times import HopTimes
from worker.limits import Limits
from worker.peers import DATA_PATH, Peers
from worker.session_parts import Shared
from worker.sessions import Sessions
from worker.told import say
from worker.wire import WireChoice

log = structlog.get_logger(__name__)

MAX_CLIENT_FRAME_BYTES = PREFIX_BYTES + MAX_HEADER_BYTES + MAX_CLIENT_PAYLOAD_BYTES
STOP_S = 5.0
"""How long stopped sessions may take to free what they hold."""
GOODBYE_S = 2.0
"""How long what they said last may take to be written."""


class DataPlane:
    """Serves `GET /v1/data`. Use as an async context manager; a defect in one of its loops takes its owner down."""

    def __init__(
        self,
        engine: Engine,
        holdings: Holdings,
        credentials: CredentialsHolder,
        worker_id: WorkerId,
        chunk_tokens: int | None,
        on_generation: Callable[[GenerationReport], None],
        clock: Callable[[], float],
        limits: Limits | None = None,
        *,
        wire: WireChoice = "auto",
        spans: SpanSink = NO_SPANS,
    ) -> None:
        self._engine = engine
        self._holdings = holdings
        self._credentials = credentials
        self._worker_id = worker_id
        self._chunk_tokens = chunk_tokens
        self._on_generation = on_generation
        self._clock = clock
        self._limits = limits or Limits()
        self._wire = wire
        self._spans = spans
        self._tasks = asyncio.TaskGroup()
        self._incoming: set[Connection] = set()
        self._hop_times = HopTimes()
        self._sessions: Sessions | None = None
        self._peers: Peers | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._peers = Peers(
            credentials=self._credentials, tasks=self._tasks, wire=self._wire, met=self._neighbour_met
        )
        self._sessions = Sessions(
            shared=Shared(
                engine=self._engine,
                peers=self._peers,
                worker_id=self._worker_id,
                cutter=PromptCutter(self._engine.measures, self._chunk_tokens),
                hop_times=self._hop_times,
                spans=self._spans,
            ),
            holdings=self._holdings,
            credentials=self._credentials,
            tasks=self._tasks,
            on_generation=self._on_generation,
            clock=self._clock,
            limits=self._limits,
        )
        self._peers.handle = self._sessions.handle_backward
        self._sweeper = self._tasks.create_task(self._sweep(self._sessions, self._peers), name="data plane sweep")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop: refuse, end sessions and tell everybody, close connections, end the loops."""
        try:
            await uninterrupted(self._stopped())
        finally:
            await self._tasks.__aexit__(exc_type, exc, traceback)

    async def _stopped(self) -> None:
        assert self._peers is not None
        await self._stop_serving()
        await self._peers.close()
        self._sweeper.cancel()

    @property
    def n_sessions(self) -> int:
        """Sessions that are open or being freed."""
        return self._sessions.n_sessions if self._sessions is not None else 0

    @property
    def round_trips_s(self) -> dict[WorkerId, float]:
        """Measured seconds to the workers that this one has connections to."""
        return self._peers.round_trips_s if self._peers is not None else {}

    @property
    def links(self) -> dict[WorkerId, LinkReport]:
        """What went to them, and how fast."""
        return self._peers.links if self._peers is not None else {}

    def hop_quantiles_s(self, *shares: float) -> tuple[float, ...]:
        """How long tokens stay here, from their arrival to their being handed on."""
        return self._hop_times.quantiles(*shares)

    def add_routes(self, app: web.Application) -> None:
        """Put the data plane into an application; whose shutdown, if it comes first, ends the connections."""
        app.router.add_get(DATA_PATH, self._accept)
        app.on_shutdown.append(self._stop_serving)

    @property
    def sessions_begun(self) -> frozenset[SessionId]:
        """Sessions that clients opened here, and that run."""
        return self._sessions.begun if self._sessions is not None else frozenset()

    def end_sessions(self, order: EndSessions) -> None:
        """End what the coordinator wants ended, as far as it runs here."""
        assert self._sessions is not None, "the uplink runs between enter and exit"
        self._sessions.end(order)

    async def drain(self, deadline_s: float) -> None:
        """Refuse new sessions; return when the running ones are over, ended by force after `deadline_s`."""
        assert self._sessions is not None, "drain comes between enter and exit"
        self._sessions.is_draining = True
        try:
            async with asyncio.timeout(deadline_s):
                await self._sessions.until_none()
        except TimeoutError:
            log.warning("drain_cut_short", n_sessions=self.n_sessions, deadline_s=deadline_s)
            await self._stop_sessions(self._sessions)

    def _neighbour_met(self, worker_id: WorkerId, version: str) -> None:
        if line := self._holdings.neighbour_met(worker_id, version):
            say(line)

    async def _stop_serving(self, _app: web.Application | None = None) -> None:
        """End sessions, tell everybody, close the connections that others opened. Idempotent."""
        if self._sessions is not None:
            self._sessions.is_draining = True
            await self._stop_sessions(self._sessions)
        for connection in tuple(self._incoming):
            connection.abort()

    async def _stop_sessions(self, sessions: Sessions) -> None:
        sessions.stop_all(DrainingError("this worker is leaving: ask for another route"))
        try:
            async with asyncio.timeout(STOP_S):
                await sessions.until_none()
        except TimeoutError:  # the engine is busy; it frees them when it gets to it
            log.warning("sessions_slow_to_stop", n_sessions=self.n_sessions)
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._written()
        except TimeoutError:
            log.info("connections_slow_to_write", n_connections=len(self._incoming))

    async def _written(self) -> None:
        """Return when everybody has been told what was to be told."""
        for connection in tuple(self._incoming):
            await connection.written()
        if self._peers is not None:
            await self._peers.written()

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        try:
            peer = self._checked(request)
        except BrigadeError as exc:
            log.info("connection_refused", remote=request.remote, **error_fields(exc))
            return _refusal(exc)
        socket = web.WebSocketResponse(
            heartbeat=PING_S,
            compress=False,
            timeout=CLOSE_S,
            max_msg_size=MAX_FRAME_BYTES if peer is not None else MAX_CLIENT_FRAME_BYTES,
        )
        socket.headers[VERSION_HEADER] = PROTOCOL_VERSION
        await socket.prepare(request)
        label = f"worker {peer}" if peer is not None else f"client {request.remote}"
        await self._serve(Connection(socket, peer=peer, label=label, version=spoken_version(request.headers)))
        return socket

    async def _serve(self, connection: Connection) -> None:
        assert self._sessions is not None
        self._incoming.add(connection)
        try:
            await connection.run(
                partial(self._sessions.handle, connection), first_message_s=self._limits.first_message_s
            )
        finally:
            self._incoming.discard(connection)

    def _checked(self, request: web.Request) -> WorkerId | None:
        """Who connects.

        Raises:
            ProtocolVersionError: it speaks another version, or doesn't say.
            UnauthenticatedError: its certificate is of the cluster but no worker's.
            DrainingError: the data plane isn't running.
            OverloadedError: too many connections.
        """
        version = request.headers.get(VERSION_HEADER)
        if version is None:
            raise ProtocolVersionError(f"the request has no {VERSION_HEADER} header; is this a Brigade client?")
        check_version(version)
        transport = request.transport
        peer = peer_worker_id(transport.get_extra_info("ssl_object") if transport is not None else None)
        if self._sessions is None:
            raise DrainingError("this worker isn't ready yet: try again", retry_after_s=1.0)
        is_worker = peer is not None
        n_open = sum((connection.peer is not None) == is_worker for connection in self._incoming)
        limit = self._limits.worker_connections if is_worker else self._limits.client_connections
        if n_open >= limit:
            raise OverloadedError(f"{n_open} connections are open here; try again later", retry_after_s=5.0)
        n_of_peer = sum(connection.peer == peer for connection in self._incoming) if is_worker else 0
        if n_of_peer >= self._limits.connections_per_worker:
            raise OverloadedError(
                f"worker {peer} has {n_of_peer} connections open here already; it needs one", retry_after_s=5.0
            )
        return peer

    async def _sweep(self, sessions: Sessions, peers: Peers) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            now_s = loop.time()
            sessions.sweep(now_s)
            peers.close_idle(now_s, self._limits.idle_peer_s)
            peers.measure()
            for connection in tuple(self._incoming):
                if connection.peer is None and connection.is_idle(now_s, self._limits.idle_client_s):
                    connection.abort()


def _refusal(error: BrigadeError) -> web.Response:
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    return web.json_response({"error": body}, status=error.status)
