"""Which sessions their heads say were opened, and are over, on its way to what is held for them.

What nobody opens within a minute is given back. What is opened later is ended, unless its head was away: of what
began while nobody listened, nobody can tell when it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

import structlog

from coordinator.repository import Repository
from coordinator.session_ends import SessionEnds
from protocol.background import uninterrupted
from protocol.control_messages import SessionsBegun
from protocol.ids import SessionId, WorkerId, is_session_id

log = structlog.get_logger(__name__)

MAX_WAITING = 10_000
"""Sessions that may wait; what is held for one beyond is given back before its time, and logged."""
MAX_WAITING_OF_HEAD = 4096
"""Of those, the ones that one worker tells of: whoever tells of what isn't leaves room to others."""
MAX_TOGETHER = 500
"""Of one transaction: SQLite takes so many values at once, and routes wait meanwhile."""


class _Told(NamedTuple):
    was_away: bool
    is_over: bool


class Openings:
    """Takes what heads say without waiting; whoever sweeps has it saved before anything is given back."""

    def __init__(self, repository: Repository, ends: SessionEnds, quota_clock: Callable[[], float]) -> None:
        self._repository = repository
        self._ends = ends
        self._quota_clock = quota_clock
        self._waiting: dict[tuple[SessionId, WorkerId], _Told] = {}
        """By who says it too: what somebody says of another's session takes the place of nothing."""
        self._n_of_heads: Counter[WorkerId] = Counter()
        self._lost: frozenset[WorkerId] = frozenset()

    @property
    def n_waiting(self) -> int:
        """Sessions that are still to be saved."""
        return len(self._waiting)

    def take(self, begun: SessionsBegun, told_by: WorkerId) -> None:
        """Have it saved; only the head of a session's own route is believed."""
        for session_ids, is_over in ((begun.session_ids, False), (begun.over, True)):
            for session_id in session_ids:
                n_told = self._n_of_heads[told_by]
                if len(self._waiting) >= MAX_WAITING or n_told >= MAX_WAITING_OF_HEAD:
                    n_waiting = len(self._waiting)
                    log.warning("openings_lost", worker_id=told_by, n_told=n_told, n_waiting=n_waiting)
                    return
                if is_session_id(session_id):
                    self._n_of_heads[told_by] += (session_id, told_by) not in self._waiting
                    self._waiting[session_id, told_by] = _Told(begun.was_away, is_over)

    async def take_lost(self, lost: Collection[WorkerId]) -> None:
        """Have it saved that what began at workers which are lost is over there: they can't say so themselves.

        Once each time that one is lost. Should it be back with what it ran, it says that.

        Raises:
            StorageError: the database can't be used; it is looked for again the next time.
        """
        newly = frozenset(lost) - self._lost
        if newly:
            held = await self._repository.quotas.held_at(newly)
            for head in newly:
                session_ids = tuple(session_id for session_id, at in held.items() if at == head)
                self.take(SessionsBegun(session_ids=(), over=session_ids, was_away=True), head)
        self._lost = frozenset(lost)

    async def save(self) -> None:
        """Save what was taken by now, and have ended what was opened too late.

        Raises:
            StorageError: the database can't be used; what isn't saved waits for the next time.
        """
        told = list(self._waiting.items())
        for start in range(0, len(told), MAX_TOGETHER):
            some: dict[SessionId, tuple[WorkerId, _Told]] = {}
            for (session_id, head), one in told[start : start + MAX_TOGETHER]:
                some.setdefault(session_id, (head, one))  # what others say of it waits for the next time
            heads = {session_id: head for session_id, (head, _) in some.items()}
            over = {session_id for session_id, (_, one) in some.items() if one.is_over}
            late = await uninterrupted(self._repository.hold_begun(heads, self._quota_clock, over))
            for session_id, (head, saved) in some.items():
                if self._waiting.get((session_id, head)) is saved:  # else its head has said more meanwhile
                    del self._waiting[session_id, head]
                    self._n_of_heads[head] -= 1
                    if not self._n_of_heads[head]:
                        del self._n_of_heads[head]
            self._ends.end_late(one for one in late if not some[one.session_id][1].was_away)
