"""What attempts have in common to which hidden states come back: the order they come in, and credit for them."""

from __future__ import annotations

from client.attempt import Attempt, CloseReason, blaming
from client.transport import ConnectionPool
from protocol.errors import BrigadeError, ProtocolError
from protocol.ids import BlockRange, WorkerId
from protocol.messages import STEP_CREDIT, Credit, SamplingParams, Step
from protocol.rest import RouteGrant
from protocol.tracing import Trace

CREDIT_BATCH = STEP_CREDIT // 2
"""Steps taken in before the tail gets credit for them: half, so that it never has to stop."""
NOTHING_TOLD = SamplingParams(max_tokens=1)
"""What the tail is told of how tokens are sampled."""


class TakingStates(Attempt):
    """As `Attempt`, for a route whose tail gives hidden states."""

    _takes_states = True

    def __init__(
        self,
        pool: ConnectionPool,
        grant: RouteGrant,
        *,
        vocab_size: int,
        blocks: BlockRange,
        trace: Trace | None = None,
    ) -> None:
        """`blocks`: those that workers are to run.

        Raises:
            ProtocolError: the route is over others.
        """
        super().__init__(pool, grant, max_tokens=STEP_CREDIT * 2, vocab_size=vocab_size, trace=trace)
        check_granted(grant, blocks)
        self._n_returned = 0
        """Positions whose states have come back."""
        self._n_uncredited = 0

    @property
    def goodbye(self) -> CloseReason | None:
        """Whether that is all, workers can't know."""
        return "finished"

    def _check_returned(self, worker_id: WorkerId, step: Step, n_sent: int) -> None:
        """Refuse states that aren't the tail's next; `n_sent` positions are under way or back."""
        end = step.position + step.n_tokens
        if worker_id != self._tail.worker_id or step.position != self._n_returned or end > n_sent:
            error = ProtocolError(
                f"worker {worker_id} gave back positions {step.position}:{end}; worker {self._tail.worker_id} has "
                f"to give those of {self._n_returned}:{n_sent}"
            )
            raise blaming(worker_id, error)

    async def _give_credit(self) -> None:
        self._n_uncredited += 1
        if self._n_uncredited == CREDIT_BATCH:
            self._n_uncredited = 0
            credit = Credit(session_id=self._grant.session_id, n_steps=CREDIT_BATCH)
            await self._send(self._tail.worker_id, credit, b"")

    async def _send(self, worker_id: WorkerId, message: Step | Credit, payload: bytes | memoryview) -> None:
        try:
            await self._told[worker_id].send(message, payload)
        except BrigadeError as exc:
            raise blaming(worker_id, exc) from exc


def check_granted(grant: RouteGrant, blocks: BlockRange) -> None:
    """Refuse a route to which nothing may be sent.

    Raises:
        ProtocolError: it isn't over these blocks.
    """
    granted = BlockRange(grant.hops[0].blocks.start, grant.hops[-1].blocks.end)
    if granted != blocks:
        raise ProtocolError(
            f"a route over blocks {blocks} was asked for, and the coordinator granted one over {granted}: it runs "
            "an older version, which has neither private generations nor hidden states; upgrade it"
        )
