"""What one worker does for one session while all goes well: open the next hop, run steps, hand them on.

Only this waits; who may send what is decided in `worker.flow`, how it ends in `worker.ending`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from protocol.errors import HopLostError, ProtocolError
from protocol.ids import WorkerId
from protocol.messages import Credit, FeedToken, OpenSession, SessionOpened, Step
from protocol.tensors import tensor_from_bytes
from protocol.tickets import Ticket
from worker.connections import Connection, ConnectionUser
from worker.ending import Ending, EndingError, ended_by_close, ended_by_error
from worker.engine import Engine
from worker.flow import Arrivals, chunks
from worker.history import History
from worker.inbox import Inbox
from worker.onward import Onward
from worker.parking import n_rows_held
from worker.peers import Peers
from worker.steps import SampledToken, SessionSpec, SpanKey, StepInput
from worker.tail import Tail

MEMORY_WAIT_S = 30.0
"""How long an opening session waits for key-value memory before the client is told to go elsewhere."""
MAX_INLINE_BYTES = 2**20
"""Payloads over this become tensors in a thread: checking 1 MB for NaN takes a fraction of a millisecond."""

_ITEM_BYTES = {"int32": 4, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all sessions of a worker use."""

    engine: Engine
    peers: Peers
    worker_id: WorkerId
    chunk_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A session that may be opened: its checked ticket, the tickets of the later hops, and who opens it."""

    ticket: Ticket
    later_tickets: tuple[str, ...]
    span: SpanKey
    opener: Connection
    deadline_at_s: float
    """On the loop's clock; for the whole generation."""
    predecessor_over: asyncio.Event | None = None
    """Set when the session that this one continues has left what it has; None if it isn't running here."""

    def time_left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_at_s - asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class ArrivedStep:
    """A step and its payload, as they came."""

    step: Step
    payload: bytes | memoryview


class Hop:
    """The waiting part of a session. `user` is who hears of its connections' end."""

    def __init__(self, opening: Opening, shared: Shared, user: ConnectionUser) -> None:
        ticket = opening.ticket
        self.is_head = ticket.head == shared.worker_id
        self.arrivals = Arrivals(max_positions=ticket.max_positions, is_fed=self.is_head)
        self.inbox: Inbox[ArrivedStep | FeedToken] = Inbox()
        self.tail = Tail(ticket.session_id, ticket.max_positions) if ticket.next is None else None
        self.history = History()
        self.ring: Connection | None = None
        """At a tail that isn't the head: the connection on which tokens go round."""
        self.last_active_s = asyncio.get_running_loop().time()
        self._opening = opening
        self._ticket = ticket
        self._session_id = ticket.session_id
        self._shared = shared
        self._user = user
        self._onward: Onward | None = None
        self._n_held: int | None = None
        """Positions that were taken over and needn't be run; None once something was run."""

    @property
    def next(self) -> Connection | None:
        """The connection to the next hop, once it is there."""
        return self._onward.connection if self._onward is not None else None

    def touch(self) -> None:
        """Note that the session isn't idle."""
        self.last_active_s = asyncio.get_running_loop().time()

    def add_credit(self, n_steps: int) -> None:
        """The next hop has consumed steps.

        Raises:
            ProtocolError: more than were sent.
        """
        if self._onward is not None:
            self._onward.add_credit(n_steps)

    async def open(self) -> None:
        """Reserve memory here, then open the next hop, or, at the tail, the way back to the head.

        Raises:
            BrigadeError: what the engine says.
            EndingError: a neighbour can't be reached.
        """
        if self._opening.predecessor_over is not None:
            await self._opening.predecessor_over.wait()
        await self._open_engine_session()
        if self._ticket.next is not None:
            connection = await self._connected(self._ticket.next, self._ticket.next_url or "")
            self._onward = Onward(self._session_id, connection, self.history)
            message = OpenSession(
                session_id=self._session_id,
                tickets=self._opening.later_tickets,
                deadline_s=max(0.001, self._opening.time_left_s()),
            )
            await connection.send(message)
            return
        if not self.is_head:
            self.ring = await self._connected(self._ticket.head, self._ticket.head_url)
        self._opening.opener.post(SessionOpened(session_id=self._session_id))

    def park(self) -> bool:
        """Leave what was computed to a session that continues this one; False if that can't be: free it then."""
        return self._shared.engine.park_session(self._session_id, self.history)

    async def run_steps(self) -> Ending:
        """Run what comes in until the tail finds the end; elsewhere until cancelled.

        Raises:
            BrigadeError: a step failed.
            EndingError: likewise, by a neighbour's fault.
        """
        while True:
            arrived = await self.inbox.get()
            if isinstance(arrived, FeedToken):
                self.history.put_ids(arrived.position, (arrived.token_id,))
                is_finished = await self._run(self._fed_input(arrived), is_last=True, sender=self._ticket.tail)
                self.arrivals.fed_consumed()
            else:
                is_finished = await self._run_arrived(arrived)
            if is_finished:
                return ended_by_close("finished", self._shared.worker_id, None)

    async def _open_engine_session(self) -> None:
        spec = SessionSpec(
            session_id=self._session_id,
            span=self._opening.span,
            blocks=self._ticket.blocks,
            n_positions=self._ticket.max_positions,
            continues=self._ticket.continues,
        )
        deadline_s = min(MEMORY_WAIT_S, max(0.0, self._opening.time_left_s()))
        taken_over = await self._shared.engine.open_session(spec, deadline_s=deadline_s)
        if taken_over is not None:
            self.history = taken_over.history
            self._n_held = taken_over.n_held(is_head=self.is_head, is_tail=self.tail is not None)

    async def _run_arrived(self, arrived: ArrivedStep) -> bool:
        step = arrived.step
        is_finished = False
        payload = await self._tensor(arrived)
        if self.is_head:
            await self._compare(step.position, payload.tolist())
        for piece in self._pieces(step, payload):
            is_last = step.is_last and piece.position + piece.n_tokens == step.position + step.n_tokens
            is_finished = await self._run(piece, is_last=is_last, sender=self._ticket.previous)
        n_steps = self.arrivals.step_consumed()
        if n_steps:
            self._opening.opener.post(Credit(session_id=self._session_id, n_steps=n_steps))
        return is_finished

    async def _compare(self, position: int, token_ids: list[int]) -> None:
        """Note the prompt's tokens; where they aren't the text that was taken over, that is of no use any more."""
        n_known = self.history.n_known(position, token_ids)
        if self._n_held is not None and n_known < len(token_ids) and position + n_known < self._n_held:
            await self._go_back_to(position + n_known)
        self.history.put_ids(position, token_ids)

    async def _go_back_to(self, position: int) -> None:
        """Forget what was taken over from `position` on."""
        self._n_held = position
        self.history.forget_states(position)
        await self._shared.engine.truncate(self._session_id, position)

    async def _run(self, piece: StepInput, *, is_last: bool, sender: WorkerId | None) -> bool:
        """Run one chunk or token of `sender`'s and hand on what comes out; whether the generation is finished."""
        if self._n_held is not None:
            n_held = n_rows_held(piece.position, piece.n_tokens, self._n_held, is_last=is_last)
            if n_held and self._onward is not None:
                await self._onward.send_again(piece.position, n_held)
            if n_held == piece.n_tokens:
                return False
            piece = _without_first(piece, n_held)
            await self._go_back_to(piece.position)
            self._n_held = None
        if is_last and self.tail is not None:
            await self.tail.prepare(self._shared.engine)
            piece = replace(piece, wants_sample=True)
        try:
            output = await self._shared.engine.run(piece)
        except ProtocolError as exc:
            raise self._blaming(sender, exc) from exc
        self.touch()
        if self._onward is not None:
            assert output.hidden is not None
            await self._onward.send(output.position, output.hidden, is_last=is_last)
            return False
        assert self.tail is not None
        return output.token is not None and await self._sampled(self.tail, output.token)

    async def _sampled(self, tail: Tail, token: SampledToken) -> bool:
        """The head first: it is what the next token waits for."""
        reason = tail.take(token)
        if reason is None:
            fed = FeedToken(session_id=self._session_id, position=token.position, token_id=token.token_id)
            if self.ring is not None:
                await self.ring.send(fed)
            else:
                self.arrivals.take_fed(token.position)
                self.inbox.put(fed)
        tail.stream(token)
        return reason is not None

    async def _connected(self, worker_id: WorkerId, url: str) -> Connection:
        try:
            connection = await self._shared.peers.connection(worker_id, url)
            connection.add_user(self._session_id, self._user)
        except HopLostError as exc:
            raise EndingError(ended_by_error(exc, worker_id)) from exc
        return connection

    async def _tensor(self, arrived: ArrivedStep) -> torch.Tensor:
        if len(arrived.payload) > MAX_INLINE_BYTES:
            return await asyncio.to_thread(self._tensor_now, arrived)
        return self._tensor_now(arrived)

    def _tensor_now(self, arrived: ArrivedStep) -> torch.Tensor:
        """(n_tokens,) ids or (n_tokens, hidden) states; the engine checks the latter's width."""
        step, payload = arrived.step, arrived.payload
        try:
            if step.dtype == "int32" or self.is_head:
                return tensor_from_bytes(payload, "int32", (step.n_tokens,))
            width = len(payload) // (step.n_tokens * _ITEM_BYTES[step.dtype])
            return tensor_from_bytes(payload, step.dtype, (step.n_tokens, width), are_states=True)
        except ProtocolError as exc:
            raise self._blaming(self._ticket.previous, exc) from exc

    def _pieces(self, step: Step, payload: torch.Tensor) -> Iterator[StepInput]:
        """A prompt comes whole and is cut here; hidden states come in the head's chunks."""
        chunk_tokens = self._shared.chunk_tokens if self.is_head else step.n_tokens
        for positions in chunks(step.position, step.n_tokens, chunk_tokens):
            first = positions.start - step.position
            yield StepInput(
                session_id=self._session_id,
                position=positions.start,
                n_tokens=len(positions),
                payload=payload[first : first + len(positions)],
            )

    def _fed_input(self, fed: FeedToken) -> StepInput:
        return StepInput(
            session_id=self._session_id,
            position=fed.position,
            n_tokens=1,
            payload=torch.tensor([fed.token_id], dtype=torch.long),
        )

    def _blaming(self, sender: WorkerId | None, exc: ProtocolError) -> EndingError:
        """A client (None) is told of its mistake; a worker that sends nonsense is one to route around."""
        if sender is None:
            return EndingError(ended_by_error(exc, self._shared.worker_id))
        error = HopLostError(f"worker {sender} sent what can't be run: {exc.message}; ask for another route")
        return EndingError(ended_by_error(error, sender))


def _without_first(piece: StepInput, n_tokens: int) -> StepInput:
    return replace(
        piece,
        position=piece.position + n_tokens,
        n_tokens=piece.n_tokens - n_tokens,
        payload=piece.payload[n_tokens:],
    )
