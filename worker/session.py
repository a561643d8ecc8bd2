"""One session on one worker, from opening to the last byte freed: a task, and what may happen to it meanwhile.

What comes for it arrives synchronously from the connections' readers (`take_...`), is checked there and goes into
an inbox that credit bounds. What ends it cancels the task, which then tells everybody and frees everything.
"""

from __future__ import annotations

import asyncio

from protocol.control_messages import GenerationReport
from protocol.errors import (
    BrigadeError,
    CancelledByClientError,
    DeadlineExceededError,
    DrainingError,
    ForbiddenError,
    HopLostError,
    InternalError,
    NotFoundError,
    ProtocolError,
)
from protocol.ids import WorkerId
from protocol.messages import Backward, CloseSession, Credit, FeedToken, SessionEnded, SessionOpened, Step, Token
from worker.connections import Connection
from worker.ending import (
    CloseReason,
    Ending,
    EndingError,
    FinishReason,
    Party,
    blame_to_tell,
    blamed,
    ended_by_close,
    ended_by_error,
    ended_by_neighbour,
    error_code_to_tell,
    keeps_cache,
    outcome,
    parties_to_tell,
)
from worker.flow import check_token_id
from worker.hop import Hop
from worker.session_notes import SessionNotes
from worker.session_parts import Opening, Shared
from worker.states_tail import StatesTail
from worker.step_inputs import ArrivedStep
from worker.tail import Attachment, Tail

CLEAN_UP_S = 60.0
"""Freeing waits for what the engine is busy with: a batch, or a span being loaded."""


class Session:
    """A session's part on this worker. `run` is its task."""

    def __init__(self, opening: Opening, shared: Shared) -> None:
        self.ticket = opening.ticket
        self.session_id = opening.ticket.session_id
        self.opener = opening.opener
        self.over = asyncio.Event()
        """Set when whoever continues the session can take over what it left."""
        self.is_over = False
        """Nothing more is taken; what is left is to free."""
        self._deadline_at_s = opening.deadline_at_s
        self._engine = shared.engine
        self._worker_id = shared.worker_id
        self._hop = Hop(opening, shared, self)
        self._notes = SessionNotes(opening, shared)
        self._is_opened = False
        self._task: asyncio.Task[object] | None = None
        self._ending: Ending | None = None

    @property
    def last_active_s(self) -> float:
        """When a step last came or was run, on the loop's clock."""
        return self._hop.last_active_s

    @property
    def tail_client(self) -> Connection | None:
        """The client attached here, if this is the tail and one is."""
        return self._hop.tail.client if self._hop.tail is not None else None

    def take_step(self, step: Step, payload: bytes | memoryview) -> None:
        """A step from the opener; one that may not come ends the session."""
        try:
            self._hop.arrivals.take_step(
                step.position, step.n_tokens, is_last=step.is_last, n_drafts=len(step.drafts)
            )
        except BrigadeError as exc:
            self.fail(exc, blame=self.ticket.previous)
            return
        self._hop.touch()
        self._hop.inbox.put(ArrivedStep(step, payload))

    def take_fed(self, message: FeedToken) -> None:
        """A token from the tail."""
        try:
            self._hop.arrivals.take_fed(message.position)
            check_token_id(message.token_id)
        except BrigadeError as exc:
            self.fail(exc, blame=self.ticket.tail)
            return
        self._hop.touch()
        self._hop.inbox.put(message)

    def take_attachment(self, attachment: Attachment) -> None:
        """The client of the tail.

        Raises:
            BrigadeError: it can't be taken; the session goes on without it.
        """
        if self._hop.tail is None:
            raise ForbiddenError("this worker is not the tail of the route: attach to the last hop")
        self._hop.tail.attach(attachment)
        attachment.connection.add_user(self.session_id, self)
        self._hop.touch()

    def take_backward(self, message: Backward) -> None:
        """What the next hop, or the head by the ring, says."""
        neighbour = self.ticket.next or self.ticket.head
        match message:
            case SessionOpened():
                if not self._is_opened:  # repeating it would only fill the opener's outbox
                    self._is_opened = True
                    self.opener.post(self._hop.next_opened(message))
            case Credit():
                try:
                    self._hop.add_credit(message.n_steps)
                except ProtocolError as exc:
                    self.fail(exc, blame=neighbour)
            case SessionEnded():
                source: Party = "ring" if self.ticket.next is None else "next"
                self.stop(ended_by_neighbour(message, neighbour, source))
            case Token():
                self.fail(ProtocolError("a token came to a worker; tokens go to clients"), blame=neighbour)

    def take_client_credit(self, message: Credit) -> None:
        """The client that gets hidden states has taken steps in."""
        try:
            self._hop.add_credit(message.n_steps)
        except ProtocolError as exc:
            self.fail(exc)

    def take_close(self, close: CloseSession) -> None:
        """The opener closed the session, and says why."""
        to_blame = blamed(close, self.opener.peer) or self._worker_id
        self.stop(ended_by_close(close.reason, to_blame, "opener", close.finish_reason, close.error_code))

    def close(
        self,
        reason: CloseReason,
        source: Party,
        *,
        blame: WorkerId | None = None,
        finish_reason: FinishReason | None = None,
    ) -> None:
        """Somebody who may do so closed the session."""
        self.stop(ended_by_close(reason, blame or self._worker_id, source, finish_reason))

    def continued(self) -> None:
        """The client goes on by another route: it has given this one up, and noticed before we did."""
        self.fail(HopLostError("the generation goes on by another route"))

    def fail(self, error: BrigadeError, *, blame: WorkerId | None = None) -> None:
        """End the session with an error that everybody is told."""
        self.stop(ended_by_error(error, blame or self._worker_id))

    def connection_lost(self, connection: Connection) -> None:
        """A connection that the session uses is gone."""
        if connection is self.opener and connection.peer is not None:
            self.stop(ended_by_close("lost", connection.peer, "opener"))
        elif connection is self.opener:
            self.close("cancelled", "opener")
        elif connection is self.tail_client:
            self.close("cancelled", "client")
        else:
            source: Party = "next" if connection is self._hop.next else "ring"
            error = HopLostError(f"the connection to {connection.label} was lost: ask for another route")
            self.stop(ended_by_error(error, connection.peer or self._worker_id, source))

    def stop(self, ending: Ending) -> None:
        """End the session; the first ending counts. Doesn't wait."""
        if self._ending is not None or self.is_over:
            return
        self._ending = ending
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> Ending:
        """Live until the session ends; on return everything of it is free."""
        self._task = asyncio.current_task()
        ending = self._ending or await self._served()
        self.is_over = True
        try:
            self._tell(ending)
        finally:
            for connection in (self.opener, self._hop.next, self._hop.ring, self.tail_client):
                if connection is not None:
                    connection.remove_user(self.session_id)
            await self._free(ending)
        self._notes.ended(ending, self._hop.clock.figures(), self._hop.rounds.figures())
        return ending

    def report(self, ending: Ending) -> GenerationReport | None:
        """What the tail tells the coordinator afterwards; None elsewhere."""
        tail = self._hop.tail
        if tail is None:
            return None
        # only a client that gets hidden states knows whether it has all that it wants, and says so
        is_ended = isinstance(tail, StatesTail) and ending.reason == "finished" and tail.is_complete
        first_token_s, s_per_token = tail.pace if isinstance(tail, Tail) else (None, None)
        return GenerationReport(
            session_id=self.session_id,
            n_prompt_tokens=tail.n_prompt_tokens,
            n_completion_tokens=tail.n_sent,
            outcome=(ending.finish_reason or "stop") if is_ended else outcome(ending, tail.finish_reason),
            first_token_s=first_token_s,
            s_per_token=s_per_token,
        )

    async def _free(self, ending: Ending) -> None:
        # nobody could tell which text a private one shares, and what is freed can't be looked at; where states are
        # wanted, all have to be computed
        if keeps_cache(ending) and not self.ticket.gives_states and self._hop.park():
            return
        try:
            async with asyncio.timeout(CLEAN_UP_S):
                await self._engine.close_session(self.session_id)
        except TimeoutError:  # the engine has it in its queue and frees it after what it is busy with
            self._notes.log.warning("session_freed_late", seconds=CLEAN_UP_S)

    async def _served(self) -> Ending:
        try:
            async with asyncio.timeout_at(self._deadline_at_s):
                await self._hop.open()
                return await self._hop.run_steps()
        except asyncio.CancelledError:
            if self._ending is None or self._task is None:
                raise
            self._task.uncancel()
            return self._ending
        except EndingError as exc:
            return exc.ending
        except TimeoutError:
            error: BrigadeError = DeadlineExceededError("the generation took longer than its deadline")
        except (CancelledByClientError, NotFoundError):
            # nobody ended the session, so it was the engine: its span was dropped by force
            error = DrainingError("this worker gave up the blocks of the session: ask for another route")
        except BrigadeError as exc:
            error = exc
        except Exception:  # the session's outermost edge: the others go on
            self._notes.log.exception("session_failed")
            error = InternalError("the session failed; the worker's log says why")
        return ended_by_error(error, self._worker_id)

    def _tell(self, ending: Ending) -> None:
        ended = SessionEnded(
            session_id=self.session_id,
            worker_id=ending.worker_id,
            error=ending.error,
            noticed_by=ending.noticed_by or self._worker_id,
        )
        closed = CloseSession(
            session_id=self.session_id,
            reason=ending.reason,
            worker_id=blame_to_tell(ending, self._worker_id),
            finish_reason=ending.finish_reason,
            error_code=error_code_to_tell(ending),
        )
        connections: dict[Party, Connection | None] = {
            "opener": self.opener,
            "client": self.tail_client,
            "next": self._hop.next,
            "ring": self._hop.ring,
        }
        told: set[Connection | None] = {None}
        if ending.source is not None:
            told.add(connections[ending.source])
        for party in sorted(parties_to_tell(ending)):
            connection = connections[party]
            if connection is not None and connection not in told:  # opener and client may share one
                told.add(connection)
                connection.post(ended if party in ("opener", "client") else closed)
