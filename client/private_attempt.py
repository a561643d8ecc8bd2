"""One try at a private generation: hidden states go to the head and come back from the tail; nobody sees a token.

The prompt goes in chunks, as far as the head's credit allows, while the first of them come back already. Embedding,
first and last blocks, head and sampling are run by a process beside the client (`client.ends_process`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from msgspec import structs

from client.attempt import CloseReason, blaming
from client.ends_process import EndsProcess
from client.taking_states import NOTHING_TOLD, TakingStates
from client.transport import ConnectionLost, ConnectionPool, ReturnedStates
from protocol.ends_messages import LastDone
from protocol.errors import ProtocolError
from protocol.frames import MAX_CLIENT_PAYLOAD_BYTES
from protocol.hop_timings import HopTimings
from protocol.ids import BlockRange, WorkerId
from protocol.messages import (
    STEP_CREDIT,
    AttachTail,
    Credit,
    SamplingParams,
    SessionEnded,
    SessionOpened,
    Step,
    Token,
)
from protocol.rest import RouteGrant
from protocol.tracing import Trace

CHUNK_TOKENS = 128
"""Positions of the prompt in one step: while workers run one, the next is run here."""
_LARGEST_ITEM_BYTES = 4


class PrivateAttempt(TakingStates):
    """As `Attempt`, for a route over the blocks between a model's ends."""

    def __init__(
        self,
        pool: ConnectionPool,
        grant: RouteGrant,
        *,
        max_tokens: int,
        vocab_size: int,
        ends: EndsProcess,
        between: BlockRange,
        trace: Trace | None = None,
    ) -> None:
        """`between`: the blocks that workers are to run.

        Raises:
            ProtocolError: the route is over others.
        """
        super().__init__(pool, grant, vocab_size=vocab_size, blocks=between, trace=trace)
        self._max_tokens = max_tokens
        self._ends = ends
        self._chunk_tokens = min(CHUNK_TOKENS, MAX_CLIENT_PAYLOAD_BYTES // (ends.hidden_size * _LARGEST_ITEM_BYTES))
        self._text_id = ends.new_text_id()
        self._credit = STEP_CREDIT
        self._outgoing: deque[tuple[Step, memoryview]] = deque()
        """The latest token's states, if they haven't left yet."""
        self._n_sent = 0
        """Positions whose states went to the head, or wait for credit."""

    async def start(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, remaining_s: float, n_prompt: int = 0
    ) -> None:
        """Tell head and tail of the session; nothing of the text goes yet. `n_prompt` as in `Attempt.start`.

        Raises:
            AttemptFailed: one of them can't be told.
            BrigadeError: the model's ends can't be run here.
        """
        session_id = self._grant.session_id
        self._n_prompt_tokens = len(token_ids)
        n_prompt = n_prompt or len(token_ids)
        await self._ends.begin(self._text_id, token_ids, len(token_ids) + self._max_tokens, sampling, n_prompt)
        opening = self._opening(remaining_s, n_prompt)
        attaching = AttachTail(session_id=session_id, ticket=self._grant.attach_ticket, sampling=NOTHING_TOLD)
        await self._tell_both([(opening, b"")], (attaching, b""))

    async def token(self) -> Token:
        """The next token; the last one that is allowed always has a reason. Raises as `Attempt.token`."""
        while True:
            await self._send_what_may_go()
            worker_id, happening = await self._inbox.get()
            match happening:
                case SessionOpened():
                    if worker_id == self._head.worker_id:
                        self.on_opened(asyncio.get_running_loop().time())
                case SessionEnded() | ConnectionLost():
                    raise self._failure(worker_id, happening)
                case Credit():
                    self._take_credit(worker_id, happening)
                case ReturnedStates():
                    token = await self._taken(worker_id, happening)
                    if token is not None:
                        return token
                case Token():
                    error = ProtocolError(f"worker {worker_id} sent a token, which none of a private session knows")
                    raise blaming(worker_id, error)

    async def end(self, reason: CloseReason) -> None:
        """Tell the workers, and free the text here."""
        self._ends.forget(self._text_id)
        await super().end(reason)

    async def _send_what_may_go(self) -> None:
        """As many steps as there is credit for: of the prompt first, then the latest token's."""
        while self._credit > 0 and (self._outgoing or self._n_sent < self._n_prompt_tokens):
            if not self._outgoing:
                await self._run_chunk()
            step, states = self._outgoing.popleft()
            self._credit -= 1
            await self._send(self._head.worker_id, step, states)

    async def _run_chunk(self) -> None:
        n_tokens = min(self._chunk_tokens, self._n_prompt_tokens - self._n_sent)
        precision, states = await self._ends.run_first(self._text_id, self._n_sent, n_tokens)
        self._put_out(n_tokens, precision, states)

    def _put_out(self, n_tokens: int, precision: str, states: memoryview) -> None:
        end = self._n_sent + n_tokens
        step = Step(
            session_id=self._grant.session_id,
            position=self._n_sent,
            n_tokens=n_tokens,
            dtype=precision,  # type: ignore[arg-type]  # a Precision is one of its values
            is_last=end >= self._n_prompt_tokens,
        )
        self._outgoing.append((step, states))
        self._n_sent = end

    def _take_credit(self, worker_id: WorkerId, credit: Credit) -> None:
        if worker_id != self._head.worker_id or self._credit + credit.n_steps > STEP_CREDIT:
            error = ProtocolError(f"worker {worker_id} gave credit for {credit.n_steps} steps that it never got")
            raise blaming(worker_id, error)
        self._credit += credit.n_steps

    async def _taken(self, worker_id: WorkerId, returned: ReturnedStates) -> Token | None:
        """Take states in; the token that follows them, if all that went out has come back."""
        step, end = returned.step, returned.step.position + returned.step.n_tokens
        self._check_returned(worker_id, step, self._n_sent)
        wants_token = end == self._n_prompt_tokens + self.n_tokens
        step = structs.replace(step, is_last=wants_token)
        try:
            done, states = await self._ends.run_last(self._text_id, step, returned.payload)
        except ProtocolError as exc:  # states that no block puts out
            raise blaming(worker_id, exc) from exc
        self._n_returned = end
        if done.precision is not None and self.n_tokens + 1 < self._max_tokens:
            self._put_out(1, done.precision, states)
            await self._send_what_may_go()
        await self._give_credit()
        return None if done.token_id is None else self._token(done.token_id, done, step.timings)

    def _token(self, token_id: int, done: LastDone, timings: tuple[HopTimings, ...]) -> Token:
        index, self.n_tokens = self.n_tokens, self.n_tokens + 1
        is_full = self.n_tokens == self._max_tokens
        is_over = done.is_stop or is_full or done.is_outgrown
        self._finish_reason = "length" if is_over and not done.is_stop else "stop"
        return Token(
            session_id=self._grant.session_id,
            index=index,
            token_id=token_id,
            finish_reason=self._finish_reason if is_over else None,
            logprob=done.logprob,
            top_logprobs=done.top_logprobs,
            timings=timings,
            is_outgrown=done.is_outgrown and not is_full,
        )
