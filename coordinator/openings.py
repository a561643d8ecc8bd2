"""Which sessions their heads say were opened, and are over, on its way to what is held for them.

What nobody opens within a minute is given back. What is opened later is ended, unless its head was away: of what
began while nobody listened, nobody can tell when it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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


class _Told(NamedTuple):
    head: WorkerId
    was_away: bool
    is_over: bool


class Openings:
    """Takes what heads say without waiting; whoever sweeps has it saved before anything is given back."""

    def __init__(self, repository: Repository, ends: SessionEnds, quota_clock: Callable[[], float]) -> None:
        self._repository = repository
        self._ends = ends
        self._quota_clock = quota_clock
        self._waiting: dict[SessionId, _Told] = {}

    @property
    def n_waiting(self) -> int:
        """Sessions that are still to be saved."""
        return len(self._waiting)

    def take(self, begun: SessionsBegun, told_by: WorkerId) -> None:
        """Have it saved; only the head of a session's own route is believed."""
        for session_ids, is_over in ((begun.session_ids, False), (begun.over, True)):
            for session_id in session_ids:
                if len(self._waiting) >= MAX_WAITING:
                    log.warning("openings_lost", worker_id=told_by, n_waiting=MAX_WAITING)
                    return
                if session_id.isalnum() and session_id.isascii() and len(session_id) <= 64:
                    self._waiting[session_id] = _Told(told_by, begun.was_away, is_over)

    async def save(self) -> None:
        """Save what was taken by now, and have ended what was opened too late.

        Raises:
            StorageError: the database can't be used; what isn't saved waits for the next time.
        """
        told = list(self._waiting.items())
        for start in range(0, len(told), MAX_TOGETHER):
            some = dict(told[start : start + MAX_TOGETHER])
            heads = {session_id: one.head for session_id, one in some.items()}
            over = {session_id for session_id, one in some.items() if one.is_over}
            late = await uninterrupted(self._repository.hold_begun(heads, self._quota_clock, over))
            for session_id, saved in some.items():
                if self._waiting.get(session_id) is saved:  # else its head has said more meanwhile
                    del self._waiting[session_id]
            self._ends.end_late(one for one in late if not some[one.session_id].was_away)
