"""Which workers joined lately, and whether with the join secret in force: who is left to be given a new one."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from protocol.ids import InviteId, WorkerId

MAX_RECENT_JOINS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """The latest time that a worker proved the secret."""

    worker_id: WorkerId
    at_s: float
    is_current: bool
    """Whether with the secret that was in force then, not with one that was replaced; or by an invite."""
    invite_id: InviteId | None = None
    """The invite that it came by, which has nothing to do with the secret."""


class RecentJoins:
    """The latest joins, one of each worker."""

    def __init__(self) -> None:
        self._joins: OrderedDict[WorkerId, Join] = OrderedDict()

    def note(self, join: Join) -> None:
        """Remember it; the oldest goes if there are too many."""
        self._joins.pop(join.worker_id, None)
        self._joins[join.worker_id] = join
        if len(self._joins) > MAX_RECENT_JOINS:
            self._joins.popitem(last=False)

    def rotated(self) -> None:
        """The secret was replaced: nobody has shown the new one yet."""
        for worker_id, join in self._joins.items():
            self._joins[worker_id] = replace(join, is_current=join.invite_id is not None)

    def newest_first(self) -> tuple[Join, ...]:
        """All of them."""
        return tuple(reversed(self._joins.values()))
