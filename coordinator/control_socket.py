"""One worker's control socket: its messages become events, the outbox of the cluster goes down the socket."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from coordinator.addresses import check_advertised_url
from coordinator.cluster import Cluster
from coordinator.generation_reports import GenerationReports
from coordinator.openings import Openings
from coordinator.policy import events
from coordinator.policy.sound import MAX_LABEL
from coordinator.session_ends import SessionEnds
from protocol.codec import MAX_CONTROL_BYTES, decode_message, encode_message
from protocol.control_messages import (
    Announce,
    CoordinatorToWorker,
    DeviceReport,
    Dismiss,
    FilesHeld,
    GenerationReport,
    Heartbeat,
    Leaving,
    SessionsBegun,
    SpanReport,
    WorkerToCoordinator,
)
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, DeadlineExceededError, InternalError, InvalidRequestError, ProtocolError
from protocol.ids import WorkerId

log = structlog.get_logger(__name__)

ANNOUNCE_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 10.0
"""A worker that takes no bytes for so long is gone."""
INBOX_SIZE = 64
"""Messages of one worker that may wait for the cluster, which may wait for the database: a minute of heartbeats."""
LARGE_BYTES = 2**16
"""Behind a message of more, the hashes of a thousand files, nothing is read until the cluster has taken it: or each
worker could have 64 times 4 MiB kept."""

Outbox = asyncio.Queue[CoordinatorToWorker]
ForCluster = Announce | Heartbeat | SpanReport | FilesHeld | Leaving
"""What waits for the cluster. The rest of what a worker says is taken where it is read."""
Inbox = asyncio.Queue[ForCluster | None]
"""None: the worker says nothing any more."""


class _SocketOverError(Exception):
    """The socket is done with, in an orderly way; ends the task group of its two directions."""

    def __init__(self, dismissal: Dismiss | None = None) -> None:
        super().__init__()
        self.dismissal = dismissal
        """What the worker was told last: the socket is still to be closed."""


class ControlSocket:
    """A socket that was accepted. `run` returns when it is over, however it ended."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        *,
        worker_id: WorkerId,
        connects_from: str,
        cluster: Cluster,
        reports: GenerationReports,
        openings: Openings,
        ends: SessionEnds,
    ) -> None:
        self._socket = socket
        self._worker_id = worker_id
        self._connects_from = connects_from
        self._cluster = cluster
        self._reports = reports
        self._openings = openings
        self._ends = ends

    async def run(self) -> None:
        """Serve the worker until either side has had enough. What the worker did wrong, it is told."""
        try:
            await self._serve(await self._announcement())
        except _SocketOverError as over:
            if over.dismissal is not None:
                await self._close_after(over.dismissal)
        except BrigadeError as error:
            log.warning("worker_dismissed", **error_fields(error))
            await self._dismiss(Dismiss(error=error.body()))
        except Exception:
            log.exception("control_socket_failed")
            await self._dismiss(Dismiss(error=InternalError("something went wrong in the coordinator").body()))

    async def close(self) -> None:
        """The coordinator stops: let the worker know that it may come back. Ends `run`."""
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"coordinator stops")

    async def _announcement(self) -> Announce:
        try:
            async with asyncio.timeout(ANNOUNCE_TIMEOUT_S):
                data = await self._receive()
        except TimeoutError as exc:
            raise DeadlineExceededError(f"no Announce within {ANNOUNCE_TIMEOUT_S:.0f} s") from exc
        message = None if data is None else _decoded(data)
        if not isinstance(message, Announce):
            raise ProtocolError(f"the first message is {_named(message)}; it must be Announce")
        _check_device(message.device)
        await check_advertised_url(message.url, self._connects_from)
        return message

    async def _serve(self, announce: Announce) -> None:
        self._cluster.check_admitted(self._worker_id)
        outbox: Outbox | None = None
        inbox: Inbox = asyncio.Queue(INBOX_SIZE)
        try:
            with self._cluster.connected(self._worker_id) as outbox:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._read(inbox), name=f"control-read-{self._worker_id}")
                    tasks.create_task(self._heed(announce, inbox), name=f"control-heed-{self._worker_id}")
                    tasks.create_task(self._write(outbox), name=f"control-write-{self._worker_id}")
        except BaseExceptionGroup as group:
            raise _telling(group) from group
        finally:
            log.info("worker_disconnected")
            # The end of an older socket says nothing about a worker that is here on a newer one.
            if outbox is not None and self._cluster.is_current(self._worker_id, outbox):
                await self._cluster.handle(events.SocketLost(worker_id=self._worker_id))

    async def _read(self, inbox: Inbox) -> None:
        """Read without waiting for the cluster: reading answers the worker's pings, else it hangs up.

        What would be lost with the socket is taken here.
        """
        while (data := await self._receive()) is not None:
            match _decoded(data):
                case GenerationReport() as report:
                    self._reports.take(report, self._worker_id)
                case SessionsBegun() as begun:
                    self._openings.take(begun, self._worker_id)
                case message:
                    await inbox.put(message)
                    if len(data) > LARGE_BYTES:
                        await inbox.join()
        await inbox.put(None)

    async def _heed(self, announce: Announce, inbox: Inbox) -> None:
        """Hand on what the worker says, in order."""
        await self._cluster.handle(events.WorkerConnected(worker_id=self._worker_id, announce=announce))
        await self._ends.catch_up(self._worker_id)
        log.info("worker_connected", url=announce.url, device=announce.device.device[:MAX_LABEL])
        while (message := await inbox.get()) is not None:
            await self._take(message)
            inbox.task_done()
        raise _SocketOverError

    async def _write(self, outbox: Outbox) -> None:
        while True:
            message = await outbox.get()
            await self._send(message)
            if isinstance(message, Dismiss):
                raise _SocketOverError(message)

    async def _receive(self) -> bytes | None:
        """The next message's bytes; None once the socket is closed."""
        try:
            frame = await self._socket.receive()  # ends without a timeout of its own: the pings see to that
        except ConnectionError:  # pinged at the moment when the connection broke
            return None
        if frame.type is WSMsgType.BINARY:
            data: bytes = frame.data
            return data
        if frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
            return None
        raise ProtocolError(f"a {frame.type.name.lower()} message; this socket takes binary ones")

    async def _take(self, message: ForCluster) -> None:
        """Hand on what a worker said."""
        worker_id = self._worker_id
        match message:
            case Announce():
                raise ProtocolError("a second Announce on one socket; open a new one")
            case Heartbeat():
                await self._cluster.handle(events.WorkerBeat(worker_id=worker_id, heartbeat=message))
            case SpanReport():
                await self._cluster.handle(events.SpansReported(worker_id=worker_id, report=message))
            case FilesHeld(files=files):
                await self._cluster.handle(events.FilesChanged(worker_id=worker_id, files=files))
            case Leaving(reason=reason, serves_on_s=serves_on_s):
                left = events.WorkerLeft(worker_id=worker_id, reason=reason, serves_on_s=serves_on_s)
                await self._cluster.handle(left)

    async def _send(self, message: CoordinatorToWorker) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._socket.send_bytes(encode_message(message))
        except (TimeoutError, ConnectionError) as exc:
            raise _SocketOverError from exc

    async def _dismiss(self, message: Dismiss) -> None:
        """Say why, and close; a worker that doesn't listen is closed without."""
        with suppress(_SocketOverError):
            await self._send(message)
            await self._close_after(message)

    async def _close_after(self, message: Dismiss) -> None:
        """Close, with nobody reading: while somebody does, aiohttp hangs up before the worker has read the code."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=message.error.code.encode())
        except (TimeoutError, ConnectionError):
            log.info("dismissed_worker_deaf", error_code=message.error.code)


def _decoded(data: bytes) -> WorkerToCoordinator:
    message: WorkerToCoordinator = decode_message(data, WorkerToCoordinator, max_bytes=MAX_CONTROL_BYTES)
    return message


def _check_device(device: DeviceReport) -> None:
    """Refuse what is no measurement: placement can't count with it, nor a database keep it."""
    speeds = (device.bandwidth_bytes_per_s, device.flops_per_s)
    if not (all(math.isfinite(speed) and speed >= 0 for speed in speeds) and 0 <= device.memory_bytes < 2**60):
        raise InvalidRequestError(
            f"the worker announces {device.memory_bytes} bytes of memory and speeds of {speeds[0]:g} bytes/s and "
            f"{speeds[1]:g} flop/s: no device has these; start it again, and report it if that doesn't help"
        )


def _telling(group: BaseExceptionGroup) -> BaseException:
    """What ended the socket: a fault before an orderly end, which is what the other direction then sees."""
    over, faults = group.split(_SocketOverError)
    found: BaseException | None = faults or over
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert found is not None
    return found


def _named(message: object) -> str:
    return "the end of the socket" if message is None else type(message).__name__
