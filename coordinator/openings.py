"""Which sessions their heads say were opened, on its way to what is held for them.

What nobody opens within a minute is given back. What is opened later is ended, unless its head was away: of what
began while nobody listened, nobody can tell when it was.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from coordinator.background import uninterrupted
from coordinator.repository import Repository
from coordinator.session_ends import SessionEnds
from protocol.control_messages import SessionsBegun
from protocol.ids import SessionId, WorkerId

log = structlog.get_logger(__name__)

MAX_WAITING = 10_000
"""Sessions that may wait; what is held for one beyond is given back before its time, and logged."""
MAX_TOGETHER = 500
"""Of one transaction: SQLite takes so many values at once, and routes wait meanwhile."""


class Openings:
    """Takes what heads say without waiting; whoever sweeps has it saved before anything is given back."""

    def __init__(self, repository: Repository, ends: SessionEnds, quota_clock: Callable[[], float]) -> None:
        self._repository = repository
        self._ends = ends
        self._quota_clock = quota_clock
        self._waiting: dict[SessionId, tuple[WorkerId, bool]] = {}

    @property
    def n_waiting(self) -> int:
        """Sessions that are still to be saved."""
        return len(self._waiting)

    def take(self, begun: SessionsBegun, told_by: WorkerId) -> None:
        """Have it saved; only the head of a session's own route is believed."""
        for session_id in begun.session_ids:
            if len(self._waiting) >= MAX_WAITING:
                log.warning("openings_lost", worker_id=told_by, n_waiting=MAX_WAITING)
                return
            if session_id.isalnum() and session_id.isascii() and len(session_id) <= 64:
                self._waiting[session_id] = (told_by, begun.was_away)

    async def save(self) -> None:
        """Save what was taken by now, and have ended what was opened too late.

        Raises:
            StorageError: the database can't be used; what isn't saved waits for the next time.
        """
        told = list(self._waiting.items())
        for start in range(0, len(told), MAX_TOGETHER):
            some = dict(told[start : start + MAX_TOGETHER])
            heads = {session_id: head for session_id, (head, _) in some.items()}
            late = await uninterrupted(self._repository.hold_begun(heads, self._quota_clock))
            for session_id in some:
                self._waiting.pop(session_id, None)
            self._ends.end_late(one for one in late if not some[one.session_id][1])
