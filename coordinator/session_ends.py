"""Ending sessions in mid-stream: of revoked keys, of generations that go on elsewhere, beside banned workers.

Workers check tickets on their own, so what is decided later they have to be told. They are told at once, and again
whenever one connects: it may have been away, or this program was.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from coordinator.cluster import Cluster
from coordinator.policy.trust_changes import banned_workers
from coordinator.repository import Repository
from coordinator.stored_rows import StoredGeneration
from coordinator.ticket_desk import TICKET_LIFE_S, TicketDesk
from protocol.control_messages import MAX_SESSIONS_NAMED, EndSessions
from protocol.errors import BrigadeError, CancelledByOperatorError, HopLostError, KeyRevokedError, StorageError
from protocol.ids import KeyId, SessionId, WorkerId

log = structlog.get_logger(__name__)

MAX_SESSIONS_TOLD = 16 * MAX_SESSIONS_NAMED
"""To one worker at once: more than it has room for, and fewer messages than may wait for it."""
MAX_REVOKED = 10_000
"""Keys revoked last that are remembered, for requests that were let in before: those wait for a minute at most."""


class SessionEnds:
    """Tells workers what to end. Those whose version has no such message run their sessions to the end."""

    def __init__(
        self, cluster: Cluster, repository: Repository, tickets: TicketDesk, clock: Callable[[], float]
    ) -> None:
        self._cluster = cluster
        self._repository = repository
        self._tickets = tickets
        self._clock = clock
        self._revoked: OrderedDict[KeyId, None] = OrderedDict()

    def check_not_revoked(self, key_id: KeyId) -> None:
        """Refuse a generation, once it is recorded, of a key that was revoked since its request was let in.

        So each one is either refused or found by `end_key`.

        Raises:
            KeyRevokedError: it was.
        """
        if key_id in self._revoked:
            raise _revoked()

    async def end_key(self, key_id: KeyId) -> None:
        """End all that runs of a key that was revoked.

        Raises:
            StorageError: nobody knows what runs; workers hear of it when they connect.
        """
        self._revoked[key_id] = None
        if len(self._revoked) > MAX_REVOKED:
            self._revoked.popitem(last=False)
        running = await self._repository.unfinished_generations(self._since(), key_id)
        self._end(running, _revoked())

    def end_continued(self, generation: StoredGeneration) -> None:
        """End a session whose generation goes on by another: it must not run beside that one."""
        self._end([generation], HopLostError("the generation goes on by another route"))

    def end_cancelled(self, generation: StoredGeneration) -> None:
        """End a session that an operator has cancelled; the client is told so and doesn't try another route."""
        self._end([generation], CancelledByOperatorError("an operator cancelled the generation"))

    def end_late(self, generations: Iterable[StoredGeneration]) -> None:
        """End sessions that were opened after what they may use had been given back."""
        self._end(generations, HopLostError("the session was opened too long after its route was given: ask anew"))

    def end_beside(self, banned: WorkerId) -> None:
        """Have all others end their sessions with a worker that was banned, whatever it does itself."""
        for worker_id in self._cluster.state.workers:
            self._end_beside(worker_id, (banned,))

    async def catch_up(self, worker_id: WorkerId) -> None:
        """Tell a worker that has connected what it may have missed; that the database is away is logged."""
        if banned := banned_workers(self._cluster.state)[:MAX_SESSIONS_NAMED]:
            self._end_beside(worker_id, banned)
        try:
            running = await self._repository.unfinished_generations(self._since())
        except StorageError as error:
            log.warning("revoked_keys_unknown", worker_id=worker_id, error_message=error.message)
            return
        self._end(running, _revoked(), only=worker_id)

    def _end_beside(self, worker_id: WorkerId, banned: Sequence[WorkerId]) -> None:
        error = HopLostError("a worker of the route was banned: ask for another route")
        self._tell(worker_id, EndSessions(neighbours=tuple(banned), error=error.body()))

    def _end(
        self, running: Iterable[StoredGeneration], error: BrigadeError, *, only: WorkerId | None = None
    ) -> None:
        by_worker: defaultdict[WorkerId, list[SessionId]] = defaultdict(list)
        for generation in running:
            for worker_id, _, _ in generation.route:
                if only is None or worker_id == only:
                    by_worker[worker_id].append(generation.session_id)
        for worker_id, session_ids in by_worker.items():
            for start in range(0, min(len(session_ids), MAX_SESSIONS_TOLD), MAX_SESSIONS_NAMED):
                named = tuple(session_ids[start : start + MAX_SESSIONS_NAMED])
                self._tell(worker_id, EndSessions(session_ids=named, error=error.body()))
            log.info("sessions_ended", worker_id=worker_id, n_sessions=len(session_ids), error_code=error.code)

    def _tell(self, worker_id: WorkerId, order: EndSessions) -> None:
        if self._tickets.can_be_told(EndSessions, worker_id):
            self._cluster.tell(worker_id, order)

    def _since(self) -> datetime:
        """What began before is over: its tickets are."""
        return datetime.fromtimestamp(self._clock(), UTC) - timedelta(seconds=TICKET_LIFE_S)


def _revoked() -> KeyRevokedError:
    return KeyRevokedError("the API key was revoked; ask whoever gave it to you for another")
