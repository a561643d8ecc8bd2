"""One try at having hidden states: token ids go to the head, and what the last worker computes comes back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.attempt import blaming, ids_payload
from client.taking_states import NOTHING_TOLD, TakingStates
from client.transport import ConnectionLost, ConnectionPool, ReturnedStates
from protocol.errors import ProtocolError
from protocol.ids import BlockRange, WorkerId
from protocol.messages import AttachTail, Credit, SessionEnded, SessionOpened, Step, Token
from protocol.rest import RouteGrant
from protocol.tracing import Trace

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Rows = NDArray[np.float32]
"""Hidden states, (n_tokens, hidden_size)."""


class StatesAttempt(TakingStates):
    """One try at the hidden states of a text."""

    def __init__(
        self,
        pool: ConnectionPool,
        grant: RouteGrant,
        *,
        vocab_size: int,
        hidden_size: int,
        blocks: BlockRange,
        trace: Trace | None = None,
    ) -> None:
        """Raises as `TakingStates`."""
        super().__init__(pool, grant, vocab_size=vocab_size, blocks=blocks, trace=trace)
        self._hidden_size = hidden_size
        self._finish_reason = "stop"

    async def states(self, token_ids: Sequence[int], *, remaining_s: float) -> Rows:
        """The states of all positions. The caller has the deadline.

        Raises:
            AttemptFailed: a connection ended before that, a worker says that something went wrong, or what came
                can't be the states of this text.
        """
        await self._begin(token_ids, remaining_s)
        parts: list[Rows] = []
        while self._n_returned < len(token_ids):
            worker_id, happening = await self._inbox.get()
            match happening:
                case SessionOpened() | Credit():  # the head was sent one step, which needs none
                    pass
                case SessionEnded() | ConnectionLost():
                    raise self._failure(worker_id, happening)
                case ReturnedStates():
                    parts.append(self._taken(worker_id, happening, len(token_ids)))
                    await self._give_credit()
                case Token():
                    raise blaming(worker_id, ProtocolError(f"worker {worker_id} sent a token instead of states"))
        return np.concatenate(parts)

    async def _begin(self, token_ids: Sequence[int], remaining_s: float) -> None:
        session_id = self._grant.session_id
        opening = self._opening(remaining_s, len(token_ids))
        step = Step(session_id=session_id, position=0, n_tokens=len(token_ids), dtype="int32", is_last=True)
        attaching = AttachTail(session_id=session_id, ticket=self._grant.attach_ticket, sampling=NOTHING_TOLD)
        await self._tell_both([(opening, b""), (step, ids_payload(token_ids))], (attaching, b""))

    def _taken(self, worker_id: WorkerId, returned: ReturnedStates, n_sent: int) -> Rows:
        self._check_returned(worker_id, returned.step, n_sent)
        try:
            rows = rows_of(returned.step, returned.payload, self._hidden_size)
        except ProtocolError as exc:
            raise blaming(worker_id, exc) from exc
        self._n_returned += len(rows)
        return rows


def rows_of(step: Step, payload: bytes | memoryview, hidden_size: int) -> Rows:
    """The states in a step, as float32.

    Raises:
        ProtocolError: they aren't such states, or not all finite.
    """
    item_bytes = _ITEM_BYTES.get(step.dtype)
    if item_bytes is None or step.group or len(payload) != step.n_tokens * hidden_size * item_bytes:
        raise ProtocolError(f"{len(payload)} bytes of {step.dtype} for {step.n_tokens} rows of {hidden_size}")
    values: NDArray[np.float32]
    if step.dtype == "bfloat16":  # the upper half of a float32
        values = (np.frombuffer(payload, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(payload, dtype=f"<f{item_bytes}").astype(np.float32)
    if not np.isfinite(values).all():
        raise ProtocolError("hidden states that aren't numbers")
    return values.reshape(step.n_tokens, hidden_size)
