"""One try at a generation: one route from its opening to its end. Knows tokens, nothing of text or deadlines.

Whatever goes wrong leaves here as `AttemptFailed`, which says who is to blame and who noticed.
"""

from __future__ import annotations

import array
import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal

from msgspec import structs

from client.failover import AttemptFailed
from client.transport import Connection, ConnectionLost, ConnectionPool, Inbox, ReturnedStates
from protocol.error_forms import error_from_body
from protocol.errors import BrigadeError, InternalError, ProtocolError
from protocol.ids import SessionId, WorkerId
from protocol.messages import (
    AttachTail,
    CloseSession,
    Credit,
    OpenSession,
    SamplingParams,
    SessionEnded,
    SessionOpened,
    Step,
    Token,
    ToWorker,
)
from protocol.rest import HopFailure, RouteGrant, RouteHop
from protocol.tracing import Trace

GOODBYE_TIMEOUT_S = 2.0
"""How long the workers may take to be told that a generation is over."""

CloseReason = Literal["finished", "cancelled", "failed", "deadline", "lost"]


class Attempt:
    """One try, over one route. Entered as a context, which only says where what comes is put."""

    _takes_states = False
    """Whether workers send hidden states here (`client.private_attempt`)."""

    def __init__(
        self,
        pool: ConnectionPool,
        grant: RouteGrant,
        *,
        max_tokens: int,
        vocab_size: int,
        trace: Trace | None = None,
    ) -> None:
        """`trace`: what the generation belongs to, as the workers' logs are to name it."""
        if not grant.hops:
            raise InternalError("the coordinator granted a route without workers")
        self._pool = pool
        self._grant = grant
        self._max_tokens = max_tokens
        self._vocab_size = vocab_size
        self._head, self._tail = grant.hops[0], grant.hops[-1]
        self._inbox = Inbox(grant.session_id, max_tokens=max_tokens, takes_states=self._takes_states)
        self._told: dict[WorkerId, Connection] = {}
        """Workers that know of the session from us."""
        self._delivering = ExitStack()
        self._trace = trace
        self.on_opened: Callable[[float], None] = lambda _now_s: None
        """Told, with the loop's time, that all workers have reserved what is needed."""
        self.n_tokens = 0
        """That have come."""
        self.n_cached = 0
        """Positions of the prompt that the head needn't run, as it says."""
        self._n_prompt_tokens = 0
        self._finish_reason: Literal["stop", "length"] | None = None
        """To be told to workers that can't know it."""
        self.is_finished = False
        """Whether the workers have ended it themselves, so that nobody has to be told."""

    @property
    def goodbye(self) -> CloseReason | None:
        """What the workers are to be told now that the caller has all that it wants; None: they know."""
        return None if self.is_finished else "cancelled"

    @property
    def session_id(self) -> SessionId:
        """The session of its route."""
        return self._grant.session_id

    @property
    def heard_session(self) -> SessionId | None:
        """The session, if its head has been told of it, so that workers may hold something of it."""
        return self.session_id if self._head.worker_id in self._told else None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._delivering.close()

    async def start(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, remaining_s: float, n_prompt: int = 0
    ) -> None:
        """Send the prompt to the head and attach to the tail, both at once and without waiting for an answer.

        `n_prompt`: how many of the tokens are before the answer; 0: all.

        Raises:
            AttemptFailed: one of them can't be told.
        """
        session_id, payload = self._grant.session_id, ids_payload(token_ids)
        self._n_prompt_tokens = len(token_ids)
        opening = self._opening(remaining_s, n_prompt or len(token_ids))
        step = Step(session_id=session_id, position=0, n_tokens=len(token_ids), dtype="int32", is_last=True)
        attaching = AttachTail(session_id=session_id, ticket=self._grant.attach_ticket, sampling=sampling)
        await self._tell_both([(opening, b""), (step, payload)], (attaching, payload))

    async def token(self) -> Token:
        """The next token; the last one that is allowed always has a reason.

        Raises:
            AttemptFailed: a connection ended before the generation did, a worker says that something went wrong,
                or a token came twice, out of order, from another worker than the tail, or isn't the model's.
        """
        while True:
            worker_id, happening = await self._inbox.get()
            match happening:
                case SessionOpened():  # nothing waits for it: the prompt is under way already
                    if worker_id == self._head.worker_id:
                        self.on_opened(asyncio.get_running_loop().time())
                        self.n_cached = min(max(0, happening.n_cached), self._n_prompt_tokens - 1)
                case SessionEnded() | ConnectionLost():
                    raise self._failure(worker_id, happening)
                case Token():
                    return self._checked(worker_id, happening)
                case Credit() | ReturnedStates():  # only of private sessions, which have an attempt of their own
                    pass

    def _opening(self, remaining_s: float, n_prompt: int) -> OpenSession:
        return OpenSession(
            session_id=self._grant.session_id,
            tickets=tuple(hop.ticket for hop in self._grant.hops),
            deadline_s=remaining_s,
            traceparent=self._trace.traceparent() if self._trace is not None else "",
            wants_timings=self._trace is not None,
            n_prompt=n_prompt,
        )

    def _checked(self, worker_id: WorkerId, token: Token) -> Token:
        if worker_id != self._tail.worker_id or token.index != self.n_tokens:
            error = ProtocolError(
                f"worker {worker_id} sent token {token.index}; token {self.n_tokens} of worker "
                f"{self._tail.worker_id} comes next"
            )
            raise blaming(worker_id, error)
        token_ids = (token.token_id, *(token_id for token_id, _ in token.top_logprobs))
        if not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            error = ProtocolError(
                f"worker {worker_id} sent token ids {min(token_ids)} to {max(token_ids)}, not all of which are the "
                f"model's {self._vocab_size}"
            )
            raise blaming(worker_id, error)
        self.n_tokens += 1
        self.is_finished = token.finish_reason is not None
        if self.n_tokens == self._max_tokens and not self.is_finished:
            return structs.replace(token, finish_reason="length")
        return token

    def _failure(self, worker_id: WorkerId, happening: SessionEnded | ConnectionLost) -> AttemptFailed:
        if isinstance(happening, ConnectionLost):
            return blaming(worker_id, happening.error)
        # only workers of the route can have failed it or noticed, whatever the neighbour says
        on_route = {hop.worker_id for hop in self._grant.hops}
        blamed = happening.worker_id if happening.worker_id in on_route else worker_id
        noticed_by = happening.noticed_by if happening.noticed_by in on_route else worker_id
        return blaming(blamed, error_from_body(happening.error), noticed_by=noticed_by)

    async def end(self, reason: CloseReason) -> None:
        """Tell head and tail that it is over; they pass it on. A worker that can't be told has noticed anyway."""
        finish_reason = self._finish_reason if reason == "finished" else None
        message = CloseSession(session_id=self._grant.session_id, reason=reason, finish_reason=finish_reason)
        async with asyncio.TaskGroup() as telling:
            for connection in self._told.values():
                telling.create_task(_say_goodbye(connection, message), name=f"end at {connection.worker_id}")

    async def _tell_both(self, to_head: Sequence[tuple[ToWorker, bytes]], to_tail: tuple[ToWorker, bytes]) -> None:
        try:
            async with asyncio.TaskGroup() as sending:
                sending.create_task(self._tell(self._head, *to_head), name="open the head")
                sending.create_task(self._tell(self._tail, to_tail), name="attach to the tail")
        except ExceptionGroup as group:
            raise _first_error(group) from group

    async def _tell(self, hop: RouteHop, *frames: tuple[ToWorker, bytes]) -> None:
        try:
            connection = await self._pool.connection(hop.worker_id, hop.url, takes_states=self._takes_states)
            if hop.worker_id not in self._told:
                self._told[hop.worker_id] = connection
                self._delivering.enter_context(connection.delivering_to(self._inbox))
            for message, payload in frames:
                await connection.send(message, payload)
        except BrigadeError as exc:
            raise blaming(hop.worker_id, exc) from exc


def blaming(blamed: WorkerId, error: BrigadeError, noticed_by: WorkerId | None = None) -> AttemptFailed:
    """The end of an attempt by this worker's fault."""
    return AttemptFailed(error, HopFailure(worker_id=blamed, noticed_by=noticed_by, code=error.code))


def ids_payload(token_ids: Sequence[int]) -> bytes:
    """Token ids as the data plane has them: little-endian, 4 bytes each."""
    values = array.array("i", token_ids)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


async def _say_goodbye(connection: Connection, message: CloseSession) -> None:
    try:
        async with asyncio.timeout(GOODBYE_TIMEOUT_S):
            await connection.send(message)
    except (BrigadeError, TimeoutError):
        return  # gone, or so slow that its own deadline has to do


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first
