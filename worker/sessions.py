"""The sessions of a worker by id: opens them, and lets each message through only to the session it may reach.

To a stranger a session that is somebody else's looks like one that doesn't exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from protocol.control_messages import EndSessions, GenerationReport
from protocol.error_forms import error_fields, error_from_body
from protocol.errors import (
    BrigadeError,
    ConflictError,
    DeadlineExceededError,
    DrainingError,
    NotFoundError,
    ProtocolError,
)
from protocol.frames import Frame
from protocol.ids import SessionId
from protocol.messages import (
    AttachTail,
    Backward,
    CloseSession,
    Credit,
    FeedToken,
    OpenSession,
    SessionEnded,
    SessionOpened,
    Step,
    Token,
)
from protocol.tickets import Ticket
from protocol.tracing import trace_from_text
from worker.connections import Connection
from worker.ending import blamed
from worker.enrolment import CredentialsHolder
from worker.holdings import Holdings
from worker.limits import Limits
from worker.opening import (
    Doorkeeper,
    banned_beside,
    is_ring_of,
    is_to_end,
    n_tokens_allowed,
    prompt_token_ids,
    span_to_use,
)
from worker.session import Session
from worker.session_parts import Opening, Shared
from worker.tail import Attachment
from worker.waiting_clients import WaitingClients

log = structlog.get_logger(__name__)


class Sessions:
    """All sessions of a worker. Tasks live in the task group of whoever owns this."""

    def __init__(
        self,
        *,
        shared: Shared,
        holdings: Holdings,
        credentials: CredentialsHolder,
        tasks: asyncio.TaskGroup,
        on_generation: Callable[[GenerationReport], None],
        clock: Callable[[], float],
        limits: Limits,
    ) -> None:
        self.is_draining = False
        self._shared = shared
        self._holdings = holdings
        self._credentials = credentials
        self._tasks = tasks
        self._on_generation = on_generation
        self._clock = clock
        self._limits = limits
        self._sessions: dict[SessionId, Session] = {}
        self._waiting_clients = WaitingClients()
        self._none_left = asyncio.Event()
        self._none_left.set()

    @property
    def n_sessions(self) -> int:
        """How many are open or being freed."""
        return len(self._sessions)

    @property
    def begun(self) -> frozenset[SessionId]:
        """Those that clients opened here, this being their head."""
        return frozenset(name for name, session in self._sessions.items() if session.ticket.previous is None)

    def handle(self, connection: Connection, frame: Frame) -> None:
        """Take a frame from a connection that somebody opened to this worker.

        Raises:
            ProtocolError: a message that doesn't go this way; close the connection.
        """
        match frame.message:
            case OpenSession() | AttachTail() as message:
                self._admit(connection, message, frame.payload)
            case Step() as message:
                session = self._of(message.session_id)
                if session is None or session.opener is not connection:
                    self._refuse(connection, message.session_id, _unknown())
                else:
                    session.take_step(message, frame.payload)
            case FeedToken() as message:
                session = self._of(message.session_id)
                if session is None or not is_ring_of(session.ticket, connection.peer):
                    self._refuse(connection, message.session_id, _unknown())
                else:
                    session.take_fed(message)
            case CloseSession() as message:
                self._close(connection, message)
            case Credit() as message:
                self._take_client_credit(connection, message)
            case SessionOpened() | SessionEnded() | Token():
                raise ProtocolError(f"a {type(frame.message).__name__} goes back to who opened the connection")

    def handle_backward(self, connection: Connection, frame: Frame) -> None:
        """Take a frame from a connection that this worker opened.

        Raises:
            ProtocolError: a message that doesn't go this way; close the connection.
        """
        message = frame.message
        if not isinstance(message, Backward):
            raise ProtocolError(f"a {type(message).__name__} doesn't go back to who opened the connection")
        session = connection.users.get(message.session_id)
        if isinstance(session, Session):  # others are over: what comes late is no news
            session.take_backward(message)

    def end(self, order: EndSessions) -> None:
        """End sessions that the coordinator wants ended; those of others than it names run on."""
        error = error_from_body(order.error)
        for session in tuple(self._sessions.values()):
            if is_to_end(session.ticket, order):
                session.fail(error, blame=banned_beside(session.ticket, order))

    def sweep(self, now_s: float) -> None:
        """End what waits for too long: sessions for steps, clients for a session, what is parked for either.

        `now_s` is the loop's clock.
        """
        for session in self._sessions.values():
            if now_s - session.last_active_s > self._limits.idle_session_s:
                error = DeadlineExceededError(f"no step came for {self._limits.idle_session_s:g} s")
                session.fail(error)
        for session_id, attachment in self._waiting_clients.take_expired(now_s):
            error = DeadlineExceededError("no worker opened this session here: open it at the head")
            self._refuse(attachment.connection, session_id, error)
        self._shared.engine.forget_parked(now_s)

    async def until_none(self) -> None:
        """Return when no session is left."""
        await self._none_left.wait()

    def stop_all(self, error: BrigadeError) -> None:
        """End every session with an error."""
        for session in self._sessions.values():
            session.fail(error)

    def _of(self, session_id: SessionId) -> Session | None:
        session = self._sessions.get(session_id)
        return None if session is None or session.is_over else session

    def _admit(
        self, connection: Connection, message: OpenSession | AttachTail, payload: bytes | memoryview
    ) -> None:
        try:
            if isinstance(message, OpenSession):
                self._open(connection, message)
            else:
                self._attach(connection, message, payload)
        except BrigadeError as exc:
            log.info("session_refused", label=connection.label, **error_fields(exc))
            self._refuse(connection, message.session_id, exc)

    def _open(self, connection: Connection, message: OpenSession) -> None:
        ticket = self._doorkeeper().ticket_to_open(message, connection.peer)
        if message.session_id in self._sessions:
            raise ConflictError("this session is open here already")
        self._check_room(connection)
        span = span_to_use(self._holdings, ticket.model, ticket.revision, ticket.blocks)
        allowed_s = min(message.deadline_s, ticket.expires_at_s - self._clock())
        opening = Opening(
            ticket=ticket,
            later_tickets=message.tickets[1:],
            span=span,
            opener=connection,
            deadline_at_s=asyncio.get_running_loop().time() + allowed_s,
            predecessor_over=self._predecessor_over(ticket),
            trace=trace_from_text(message.traceparent),
            wants_timings=message.wants_timings,
            n_prompt=message.n_prompt,
        )
        session = Session(opening, self._shared)
        attachment = self._waiting_clients.take(message.session_id) if ticket.next is None else None
        if attachment is not None:
            self._take_waiting(session, attachment)
        connection.add_user(message.session_id, session)
        self._sessions[message.session_id] = session
        self._none_left.clear()
        self._tasks.create_task(self._run(session), name=f"session {message.session_id}")

    def _predecessor_over(self, ticket: Ticket) -> asyncio.Event | None:
        """When the session that a new one goes on from is over, should it still run here; a failed one is ended."""
        failed = self._sessions.get(ticket.continues) if ticket.continues is not None else None
        if failed is not None:
            failed.continued()
            return failed.over
        earlier = self._sessions.get(ticket.prefix.session_id) if ticket.prefix is not None else None
        return earlier.over if earlier is not None else None

    def _take_waiting(self, session: Session, attachment: Attachment) -> None:
        try:
            session.take_attachment(attachment)
        except BrigadeError as exc:  # the client is told; the session ends for want of one
            self._refuse(attachment.connection, session.session_id, exc)

    def _attach(self, connection: Connection, message: AttachTail, payload: bytes | memoryview) -> None:
        ticket = self._doorkeeper().ticket_to_attach(message)
        token_ids: tuple[int, ...] = ()
        if payload or not ticket.gives_states:
            token_ids = prompt_token_ids(payload, ticket.max_positions)
        if not ticket.gives_states:
            n_tokens_allowed(message.sampling, len(token_ids), ticket.max_positions)
        attachment = Attachment(connection=connection, sampling=message.sampling, prompt_token_ids=token_ids)
        session = self._of(message.session_id)
        if session is not None:
            session.take_attachment(attachment)
            return
        self._check_room(connection)
        until_s = asyncio.get_running_loop().time() + self._limits.waiting_client_s
        self._waiting_clients.add(message.session_id, attachment, until_s)

    def _close(self, connection: Connection, message: CloseSession) -> None:
        """Closing what one may not close is as if it weren't there: nothing happens, nothing is said."""
        self._waiting_clients.leave(message.session_id, connection)
        session = self._of(message.session_id)
        if session is None:
            return
        if session.opener is connection:
            session.take_close(message)
        elif session.tail_client is connection:
            is_believed = message.reason == "failed" or (
                session.ticket.gives_states and message.reason == "finished"
            )
            reason = message.reason if is_believed else "cancelled"
            session.close(reason, "client", finish_reason=message.finish_reason)
        elif is_ring_of(session.ticket, connection.peer):
            session.close(message.reason, "ring", blame=blamed(message, connection.peer))

    def _take_client_credit(self, connection: Connection, message: Credit) -> None:
        """Only a client that gets hidden states gives any; what comes after the session's end is no news."""
        session = self._of(message.session_id)
        if session is not None and session.ticket.gives_states and session.tail_client is connection:
            session.take_client_credit(message)
        elif message.session_id in connection.users:
            raise ProtocolError("a Credit goes back to who opened the connection")

    async def _run(self, session: Session) -> None:
        try:
            ending = await session.run()
            report = session.report(ending)
            if report is not None:
                self._on_generation(report)
        except Exception:  # the session's outermost edge: a defect in ending one must not end the others
            log.exception("session_broke", session_id=session.session_id)
        finally:
            session.is_over = True
            session.over.set()
            del self._sessions[session.session_id]
            if not self._sessions:
                self._none_left.set()

    def _doorkeeper(self) -> Doorkeeper:
        return Doorkeeper(
            worker_id=self._shared.worker_id, ticket_keys=self._credentials.ticket_keys, now_s=self._clock()
        )

    def _check_room(self, connection: Connection) -> None:
        if self.is_draining:
            raise DrainingError("this worker is leaving and takes no new sessions: ask for another route")
        self._limits.check_room(len(self._sessions) + len(self._waiting_clients), len(connection.users))

    def _refuse(self, connection: Connection, session_id: SessionId, error: BrigadeError) -> None:
        own_id = self._shared.worker_id
        ended = SessionEnded(session_id=session_id, worker_id=own_id, error=error.body(), noticed_by=own_id)
        connection.post(ended)


def _unknown() -> NotFoundError:
    return NotFoundError("no such session is open for this connection")
