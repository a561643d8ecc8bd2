"""What one worker does for one session while all goes well: open the next hop, run steps, hand them on.

Only this waits; who may send what is decided in `worker.flow`, how it ends in `worker.ending`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from protocol.errors import HopLostError, ProtocolError
from protocol.ids import WorkerId
from protocol.messages import Credit, FeedToken, SessionOpened, Step
from protocol.prompt_cost import RoutePromptCosts
from worker.connections import Connection, ConnectionUser
from worker.ending import Ending, EndingError, ended_by_close, ended_by_error
from worker.flow import Arrivals
from worker.history import History
from worker.hop_clock import HopClock
from worker.hop_times import is_one_round
from worker.inbox import Inbox
from worker.onward import Onward
from worker.resuming import Resumption
from worker.session_parts import Opening, Shared
from worker.speculation import Rounds
from worker.states_tail import StatesTail, tail_of
from worker.step_inputs import ArrivedStep, payload_of, pieces_of
from worker.steps import SampledToken, StepInput
from worker.tail import Tail

MEMORY_WAIT_S = 30.0
"""How long an opening session waits for key-value memory before the client is told to go elsewhere."""
PREDECESSOR_WAIT_S = 5.0
"""How long one waits for what an earlier session leaves here: its end goes round the ring, ours may be faster."""


class Hop:
    """The waiting part of a session. `user` is who hears of its connections' end."""

    def __init__(self, opening: Opening, shared: Shared, user: ConnectionUser) -> None:
        ticket = opening.ticket
        self.is_head = ticket.head == shared.worker_id and not ticket.is_private
        self.arrivals = Arrivals(
            max_positions=ticket.max_positions, is_fed=self.is_head, is_private=ticket.is_private
        )
        self.inbox: Inbox[ArrivedStep | FeedToken] = Inbox()
        span = next((one for one in shared.engine.loaded() if one.key == opening.span), None)
        anew_after = None if span is None else span.text_lengths.anew_after(opening.n_prompt)
        self.tail = tail_of(ticket, anew_after)
        self.history = History()
        prior = shared.draft_prior if self.is_head and ticket.speculates else None
        engine = shared.engine
        # the token behind those that needn't be run anew is the last
        most = ticket.max_positions if anew_after is None else min(ticket.max_positions, anew_after + 1)
        model = engine.drafter.reach(engine.loaded(), opening.span, most) if prior is not None else None
        self.rounds = Rounds(prior, most, model)
        """At a head: what it sends round, guesses included."""
        self.ring: Connection | None = None
        """At a tail that isn't the head: the connection on which tokens go round."""
        self.last_active_s = asyncio.get_running_loop().time()
        self._opening = opening
        self._ticket = ticket
        self._session_id = ticket.session_id
        self._shared = shared
        self._user = user
        self._is_encoder = span is not None and span.is_encoder
        self._onward: Onward | None = None
        self._resumption: Resumption | None = None
        """What was taken over from another session; None once something was run."""
        self.n_cached = 0
        """Positions that were taken over."""
        self.clock = HopClock(is_told=opening.wants_timings)

    @property
    def next(self) -> Connection | None:
        """The connection to the next hop, once it is there; a tail that gives states has only its client."""
        return self._onward.connection if self._onward is not None and self.tail is None else None

    def touch(self) -> None:
        """Note that the session isn't idle."""
        self.last_active_s = asyncio.get_running_loop().time()

    def add_credit(self, n_steps: int) -> None:
        """The next hop, or the client of a tail that gives states, has consumed steps.

        Raises:
            ProtocolError: more than were sent.
        """
        if self._onward is not None:
            self._onward.add_credit(n_steps)

    def next_opened(self, said: SessionOpened) -> SessionOpened:
        """The next hop is open; what to say to the one before."""
        if self._onward is not None:
            self._onward.opened(said.n_cached)
        return self._opened(said.prompt_costs)

    async def open(self) -> None:
        """Reserve memory here, then open the next hop, or, at the tail, the way back to the head.

        Raises:
            BrigadeError: what the engine says.
            EndingError: a neighbour can't be reached.
        """
        await self._predecessor_over()
        await self._open_engine_session()
        if self._ticket.next is not None:
            connection = await self._connected(self._ticket.next, self._ticket.next_url or "")
            is_resumed = self._ticket.continues is not None or self._ticket.prefix is not None
            self._onward = Onward(self._session_id, connection, self.history, is_resumed=is_resumed)
            if self._resumption is not None:
                self._resumption.onward = self._onward
            await connection.send(self._opening.onward())
            return
        if not self.is_head and not self._ticket.gives_states:
            self.ring = await self._connected(self._ticket.head, self._ticket.head_url)
        self._opening.opener.post(self._opened())

    def park(self) -> bool:
        """Leave what was computed to sessions with the same text; False if that can't be: free it then."""
        return self._shared.engine.park_session(self._session_id, self.history)

    async def run_steps(self) -> Ending:
        """Run what comes in until the tail finds the end; elsewhere until cancelled.

        Raises:
            BrigadeError: a step failed.
            EndingError: likewise, by a neighbour's fault.
        """
        while True:
            arrived = await self.inbox.get()
            arrived_s = self.last_active_s  # of one token nothing else of the session is under way
            running = self._run_fed(arrived) if isinstance(arrived, FeedToken) else self._run_arrived(arrived)
            is_finished = await running
            if isinstance(arrived, FeedToken) or is_one_round(arrived.step):
                self._shared.hop_times.add(asyncio.get_running_loop().time() - arrived_s)
            if is_finished:
                return ended_by_close("finished", self._shared.worker_id, None)

    def _opened(self, later: RoutePromptCosts = ()) -> SessionOpened:
        costs = self._shared.cutter.heard(self._opening.route, later)
        told = costs if self._ticket.previous is not None else ()
        return SessionOpened(session_id=self._session_id, n_cached=self.n_cached, prompt_costs=told)

    async def _open_engine_session(self) -> None:
        deadline_s = min(MEMORY_WAIT_S, max(0.0, self._opening.time_left_s()))
        now_s = asyncio.get_running_loop().time
        began_s = now_s()
        taken_over = await self._shared.engine.open_session(self._opening.spec, deadline_s=deadline_s)
        self.clock.memory_s = now_s() - began_s
        if taken_over is not None:
            self.history = taken_over.history
            self.n_cached = taken_over.n_held(is_head=self.is_head, is_tail=self.tail is not None)
            self._resumption = Resumption(
                engine=self._shared.engine,
                session_id=self._session_id,
                history=self.history,
                n_held=self.n_cached,
            )
            if not self.is_head:
                self.arrivals.resume(self.n_cached)

    async def _predecessor_over(self) -> None:
        """Wait for the session that this one goes on from, if it is still being ended here."""
        if self._opening.predecessor_over is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(PREDECESSOR_WAIT_S):
                    await self._opening.predecessor_over.wait()

    async def _run_fed(self, fed: FeedToken) -> bool:
        now_s = asyncio.get_running_loop().time()
        n_others = self._shared.engine.n_sessions - 1
        turn = self.rounds.next(fed, self.history.token_ids, n_others=n_others, now_s=now_s)
        self.history.put_ids(fed.position + 1 - len(turn.settled), turn.settled)
        so_far = self.history.token_ids[: fed.position + 1] if turn.n_wanted else ()
        turn = await self._shared.engine.drafter.completed(turn, self.rounds, self._session_id, so_far)
        self.arrivals.drafted(len(turn.drafts))
        piece = StepInput(
            session_id=self._session_id,
            position=fed.position,
            n_tokens=1 + len(turn.drafts),
            payload=torch.tensor((fed.token_id, *turn.drafts), dtype=torch.long),
            drafts=turn.drafts,
        )
        is_finished = await self._run(piece, is_last=True, sender=self._ticket.tail)
        self.arrivals.fed_consumed()
        return is_finished

    async def _run_arrived(self, arrived: ArrivedStep) -> bool:
        step, is_finished = arrived.step, False
        self.clock.before = step.timings
        payload = await self._payload(arrived)
        token_ids, n_passed_over = payload.tolist() if self.is_head else None, 0
        if self._resumption is not None:
            n_passed_over = await self._resumption.passed_over(step, token_ids)
            if n_passed_over < step.n_tokens:
                self._resumption = None
        if token_ids is not None:
            self.history.put_ids(step.position, token_ids)
        for piece in pieces_of(step, payload, self._pieces(step, n_passed_over)):
            is_last = step.is_last and piece.position + piece.n_tokens == step.position + step.n_tokens
            is_finished = await self._run(piece, is_last=is_last, sender=self._ticket.previous)
        if n_steps := self.arrivals.step_consumed():
            self._opening.opener.post(Credit(session_id=self._session_id, n_steps=n_steps))
        return is_finished

    def _pieces(self, step: Step, n_passed_over: int) -> Iterable[range]:
        """What a client sends is cut here, unless an encoder is to run it; others send what the first hop ran."""
        positions = range(step.position + n_passed_over, step.position + step.n_tokens)
        if not positions or self._is_encoder or step.drafts:
            return [positions] if positions else []
        ticket, engine, cutter = self._ticket, self._shared.engine, self._shared.cutter
        pieces = [positions]
        if ticket.is_private and ticket.previous is None:
            pieces = cutter.even_pieces(positions)
        elif ticket.previous is None:
            pieces = cutter.pieces(positions, self._opening.route, n_others=engine.n_sessions - 1)
        return cutter.as_others_come(pieces, lambda: engine.n_sessions - 1, self._opening.tenant)

    async def _run(self, piece: StepInput, *, is_last: bool, sender: WorkerId | None) -> bool:
        """Run one chunk or token of `sender`'s and hand on what comes out; whether the generation is finished."""
        if is_last and isinstance(self.tail, Tail):
            await self.tail.prepare(self._shared.engine, self._shared.grammars, self._opening.span)
            piece = replace(piece, wants_sample=True)
        self.history.n_settled = piece.position + piece.n_tokens - piece.n_drafts
        began_s = asyncio.get_running_loop().time()
        try:
            output = await self._shared.engine.run(piece)
        except ProtocolError as exc:
            raise self._blaming(sender, exc) from exc
        self.touch()
        self.clock.ran(output, self.last_active_s - began_s)
        if isinstance(self.tail, StatesTail):
            self._onward = await self.tail.onward(self.history, piece.position + piece.n_tokens, is_last=is_last)
        if self._onward is not None:
            assert output.hidden is not None
            self._onward.timings = self.clock.said()
            await self._onward.send(output.position, output.hidden, is_last=is_last, drafts=piece.drafts)
            return False
        assert isinstance(self.tail, Tail)
        return bool(output.tokens) and await self._sampled(self.tail, output.tokens, piece.drafts)

    async def _sampled(self, tail: Tail, tokens: Sequence[SampledToken], drafts: Sequence[int]) -> bool:
        """The head first: it is what the next token waits for. Of several it has guessed all but the last."""
        kept = tail.take(tokens, drafts)
        if tail.finish_reason is None:
            last = kept[-1]
            fed = FeedToken(session_id=self._session_id, position=last.position, token_id=last.token_id)
            if self.ring is not None:
                await self.ring.send(fed)
            else:
                self.arrivals.take_fed(last.position)
                self.inbox.put(fed)
        tail.stream(kept, self.clock.said())
        return tail.finish_reason is not None

    async def _connected(self, worker_id: WorkerId, url: str) -> Connection:
        try:
            connection = await self._shared.peers.connection(worker_id, url)
            connection.add_user(self._session_id, self._user)
        except HopLostError as exc:
            raise EndingError(ended_by_error(exc, worker_id)) from exc
        return connection

    async def _payload(self, arrived: ArrivedStep) -> torch.Tensor:
        try:
            return await payload_of(arrived, is_head=self.is_head)
        except ProtocolError as exc:
            raise self._blaming(self._ticket.previous, exc) from exc

    def _blaming(self, sender: WorkerId | None, exc: ProtocolError) -> EndingError:
        """A client (None) is told of its mistake; a worker that sends nonsense is one to route around."""
        if sender is None:
            return EndingError(ended_by_error(exc, self._shared.worker_id))
        error = HopLostError(f"worker {sender} sent what can't be run: {exc.message}; ask for another route")
        return EndingError(ended_by_error(error, sender))
