"""The control socket to the coordinator: announce, beat, report, obey; come back whenever it is lost.

A coordinator that is away stops nothing here: sessions run on, and what there is to report waits.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import NoReturn

import aiohttp
import structlog

from protocol.backoff import jittered_delay_s
from protocol.codec import encode_message
from protocol.compatibility import has_field, knows_message, understood_by
from protocol.control_messages import (
    HEARTBEAT_S,
    MAX_SESSIONS_NAMED,
    Assign,
    Dismiss,
    Drain,
    EndSessions,
    FilesHeld,
    GenerationReport,
    Leaving,
    SessionsBegun,
    SpanReport,
    WorkerToCoordinator,
)
from protocol.error_forms import error_fields, error_from_body
from protocol.errors import BrigadeError, UnauthenticatedError, UnreachableError, WrongSecretError
from protocol.http_connector import ClosingConnector
from protocol.ids import SessionId
from protocol.tls import client_context
from worker.control_socket import is_final, opened_socket, received_order, spoken_by
from worker.enrolment import Credentials, CredentialsHolder
from worker.error_groups import most_telling
from worker.holdings import Holdings
from worker.reminders import Reminders
from worker.renewal import REFUSED_S, Renewal, retry_delay_s
from worker.uplink_hooks import UplinkHooks
from worker.waiting_reports import WaitingReports

log = structlog.get_logger(__name__)

_SEND_S = 10.0
_REPORT_PAUSE_S = 0.25
"""Between two reports of spans: progress changes with every piece of a download."""
_LONGEST_DELAY_S = 5.0
"""A coordinator that was away for long is noticed back soon; 1,000 workers are then 400 attempts a second."""
_STEADY_S = 5.0
"""A socket that lived so long was a good one: the delays begin anew."""


class Uplink:
    """Keeps the control socket of an enrolled worker. `run` it in a task group."""

    def __init__(
        self,
        *,
        credentials: CredentialsHolder,
        holdings: Holdings,
        hooks: UplinkHooks,
        clock: Callable[[], float],
    ) -> None:
        self._credentials = credentials
        self._holdings = holdings
        self._hooks = hooks
        self._reports = WaitingReports()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._context: tuple[str, ssl.SSLContext] | None = None
        self._rng = random.SystemRandom()
        self._n_failures = 0
        self._begun: frozenset[SessionId] = frozenset()
        """Sessions of this head that the coordinator was told of last, on whatever socket."""
        self._reminders = Reminders(hooks.tell)
        self.renewal = Renewal(
            credentials,
            enrol=hooks.renew,
            on_new_key=self._close_socket,
            reminders=self._reminders,
            clock=clock,
        )
        self._refused: Credentials | None = None
        """Credentials that the coordinator no longer takes."""
        self.connected = asyncio.Event()
        """Set while the worker is announced on an open socket."""
        self.disconnected = asyncio.Event()
        """Set while it is not."""
        self.disconnected.set()

    def report_generation(self, report: GenerationReport) -> None:
        """Have a generation reported, now or when the coordinator is back."""
        self._reports.add(report)

    async def leave(self, reason: str, serves_on_s: float = 0.0) -> bool:
        """Say that the worker goes, and takes new sessions for so long at most; nothing if the coordinator is away.

        Returns:
            Whether the coordinator will say `Drain` when others have taken this worker's place.
        """
        if self._socket is None or not self.connected.is_set():
            return False
        knows_it = has_field(spoken_by(self._socket), Leaving, "serves_on_s")
        try:
            await self._send(self._socket, Leaving(reason=reason, serves_on_s=serves_on_s if knows_it else 0.0))
        except UnreachableError as exc:
            log.info("leaving_unsaid", **error_fields(exc))
            return False
        return knows_it and serves_on_s > 0

    async def flush(self, deadline_s: float) -> None:
        """Wait until every generation is reported, if the coordinator is there, at most so long."""
        if not self.connected.is_set():
            return
        try:
            async with asyncio.timeout(deadline_s):
                await self._reports.all_sent()
        except TimeoutError:
            log.warning("generation_reports_unsent", n_reports=len(self._reports))

    async def run(self) -> None:
        """Keep the socket open and the credentials fresh, for ever.

        Raises:
            ConflictError: another worker with this identity took this one's place.
            ForbiddenError: the coordinator doesn't want this worker.
            InvalidRequestError: it can't use what this worker announces (its address, say).
            ProtocolVersionError: the coordinator was replaced by one of another version.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.renewal.renew_in_time(), name="uplink-renewal")
            tasks.create_task(self._reconnect(), name="uplink-socket")

    async def _reconnect(self) -> None:
        while True:
            used = self._credentials.current
            try:
                await self._renew_if_refused()
                used = self._credentials.current
                await self._serve_one_socket()
            except (BrigadeError, BaseExceptionGroup) as exc:
                found = most_telling(exc) if isinstance(exc, BaseExceptionGroup) else exc
                if not isinstance(found, BrigadeError):
                    raise
                error: BrigadeError = found
            if is_final(error):
                raise error
            if isinstance(error, UnauthenticatedError):
                self._refused = used
            self._n_failures += 1
            # added, not the larger of both: else all who were told the same time would come together
            jitter_s = jittered_delay_s(self._n_failures, self._rng, _LONGEST_DELAY_S)
            delay_s = retry_delay_s(error, 0.0) + jitter_s
            log.warning("uplink_lost", retry_in_s=round(delay_s, 2), **error_fields(error))
            self._tell_lost(error)
            await asyncio.sleep(delay_s)

    async def _renew_if_refused(self) -> None:
        if self._refused is not None:
            await self.renewal.renew(self._refused)
            self._refused = None

    async def _close_socket(self) -> None:
        """The next one has tickets made with the key that the new token came with."""
        if self._socket is not None:
            await self._socket.close()

    def _tell_lost(self, error: BrigadeError) -> None:
        if isinstance(error, WrongSecretError):
            self._reminders.say(
                f"not let in any more: {error.message}; sessions go on. Put the new secret into the file of "
                f"--secret-file, else start this worker again with it; trying again every {REFUSED_S:g} s"
            )
        elif not isinstance(error, UnauthenticatedError):  # that is mended by enrolling again, at once
            self._reminders.say(f"lost the coordinator ({error.message}); sessions go on, trying to come back")

    async def _serve_one_socket(self) -> NoReturn:
        """Open the socket, announce, and talk until it ends."""
        credentials = self._credentials.current
        context = await self._tls(credentials.ca_pem)
        connector = ClosingConnector(ssl=context, max_cuts=1)  # the next try, a moment later, takes another address
        async with aiohttp.ClientSession(connector=connector) as session:
            try:
                socket = await opened_socket(session, credentials)
            except UnreachableError:
                self._credentials.try_next_address()
                raise
            try:
                await self._talk(socket)
            finally:
                self.connected.clear()
                self.disconnected.set()
                self._socket = None
                self._reports.send_again(asyncio.get_running_loop().time())
                await socket.close()

    async def _tls(self, ca_pem: str) -> ssl.SSLContext:
        """Kept, since making one costs more than an attempt to connect; and a thread's work."""
        if self._context is None or self._context[0] != ca_pem:
            self._context = (ca_pem, await asyncio.to_thread(client_context, ca_pem))
        return self._context[1]

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> NoReturn:
        version = self._holdings.version
        await self._send(socket, self._hooks.announce())
        self._socket = socket
        self.connected.set()
        self.disconnected.clear()
        if self._n_failures:
            self._hooks.tell("back with the coordinator")
            self._reminders.forget()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settle(), name="uplink-steady")
            tasks.create_task(self._beat(socket), name="uplink-heartbeats")
            tasks.create_task(self._report_spans(socket, version), name="uplink-spans")
            if knows_message(SessionsBegun, spoken_by(socket)):
                tasks.create_task(self._report_begun(socket), name="uplink-sessions")
            tasks.create_task(self._report_generations(socket), name="uplink-generations")
            await self._obey(socket)

    async def _settle(self) -> None:
        await asyncio.sleep(_STEADY_S)
        self._n_failures = 0

    async def _beat(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._send(socket, self._hooks.heartbeat())
            await asyncio.sleep(HEARTBEAT_S)

    async def _report_spans(self, socket: aiohttp.ClientWebSocketResponse, version: int) -> None:
        spans, files = self._holdings.report, self._holdings.files
        while True:
            version = await self._holdings.changed_since(version)
            if self._holdings.report != spans:
                spans, before = self._holdings.report, spans
                await self._send(socket, spans)
                if _n_ready(spans) > _n_ready(before):  # for how long sessions there is room now, before any come
                    await self._send(socket, self._hooks.heartbeat())
            if self._holdings.files != files:
                files = self._holdings.files
                await self._send(socket, FilesHeld(files=files))
            await asyncio.sleep(_REPORT_PAUSE_S)

    async def _report_begun(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """What runs when the socket is opened, then what has begun since, once each; and what of it is over."""
        told: frozenset[SessionId] = frozenset()
        was_away = True
        while True:
            running = self._hooks.sessions_begun()
            new, over = tuple(running - told), tuple(self._begun - running)
            for start in range(0, max(len(new), len(over)), MAX_SESSIONS_NAMED):
                some = slice(start, start + MAX_SESSIONS_NAMED)
                await self._send(socket, SessionsBegun(session_ids=new[some], was_away=was_away, over=over[some]))
            self._begun = told = running
            was_away = False
            await asyncio.sleep(HEARTBEAT_S)

    async def _report_generations(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            report = await self._reports.next()
            await self._send(socket, understood_by(report, spoken_by(socket)))
            self._reports.sent(report, asyncio.get_running_loop().time())

    async def _obey(self, socket: aiohttp.ClientWebSocketResponse) -> NoReturn:
        while True:
            match await received_order(socket):
                case Assign() as order:
                    if self._holdings.assign(order):
                        blocks = ", ".join(f"{span.blocks} of {span.model}" for span in order.spans) or "none"
                        self._hooks.tell(f"assigned blocks: {blocks} ({order.reason})")
                case Drain(reason=reason):
                    self._hooks.on_drain(reason)
                case EndSessions() as order:
                    self._hooks.on_end_sessions(order)
                case Dismiss(error=error):
                    raise error_from_body(error)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, message: WorkerToCoordinator) -> None:
        try:
            async with asyncio.timeout(_SEND_S):
                await socket.send_bytes(encode_message(message))
        except (TimeoutError, aiohttp.ClientError, OSError, RuntimeError) as exc:
            raise UnreachableError(f"the control socket broke: {str(exc) or 'it takes nothing'}") from exc


def _n_ready(report: SpanReport) -> int:
    return sum(status.state == "ready" for status in report.spans)
