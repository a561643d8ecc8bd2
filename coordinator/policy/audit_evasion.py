"""Workers whose audits come to nothing time and again, while sessions of clients end well over them. Pure.

That one audit comes to nothing says nothing: a worker may be loaded, leave, or have no way to the coordinator. Who
has room for clients, and never for audits, which look the same from where it stands, has something to hide, or
can't be audited as the network is. Either way an operator has to know, and it counts a little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from coordinator.policy.evidence_weights import WEIGHINGS
from coordinator.policy.trust import COORDINATOR, Evidence
from coordinator.policy.trust_events import Seen
from protocol.ids import WorkerId

IN_A_ROW = 5
"""Audits that come to nothing before it counts."""
SERVED = 5
"""Generations that must have ended well over the worker since the first of them, or since it last counted."""
_MAX_NAMED = 4


@dataclass(frozen=True, slots=True)
class Row:
    """Audits of one worker that came to nothing, one after the other."""

    n_audits: int = 0
    n_served: int = 0
    n_answered: int = 0
    """Audits that others answered meanwhile: where nobody does, the coordinator can't be reached."""

    @property
    def is_telling(self) -> bool:
        """Whether this is no accident."""
        return self.n_audits >= IN_A_ROW and self.n_served >= SERVED and self.n_answered > 0


Rows = Mapping[WorkerId, Row]


def answered(rows: Rows, worker_id: WorkerId) -> Rows:
    """A worker has answered, right or wrong: its own row is over."""
    others = {other: row for other, row in rows.items() if other != worker_id}
    return {other: replace(row, n_answered=row.n_answered + 1) for other, row in others.items()}


def came_to_nothing(rows: Rows, worker_id: WorkerId) -> Rows:
    """A worker couldn't be asked, or couldn't answer."""
    row = rows.get(worker_id, Row())
    return {**rows, worker_id: replace(row, n_audits=row.n_audits + 1)}


def pardoned(rows: Rows, worker_id: WorkerId) -> Rows:
    """An operator has what speaks against a worker forgotten: its row is over."""
    return {other: row for other, row in rows.items() if other != worker_id}


def served(rows: Rows, route: Iterable[WorkerId]) -> Rows:
    """A generation ended well over these."""
    more = {name: replace(rows[name], n_served=rows[name].n_served + 1) for name in set(route) if name in rows}
    return {**rows, **more} if more else rows


def counted(rows: Rows, worker_id: WorkerId) -> tuple[Rows, Seen | None]:
    """What a row is to count for now, if it is telling; to count again it takes as many generations more."""
    row = rows.get(worker_id, Row())
    if not row.is_telling:
        return rows, None
    evidence = Evidence(kind="overloaded", reporter=COORDINATOR, weight=WEIGHINGS["overloaded"].weight)
    reason = f"{row.n_audits} audits in a row came to nothing, while {row.n_served} generations ended well over it"
    return {**rows, worker_id: replace(row, n_served=0)}, Seen(
        worker_id=worker_id, evidence=evidence, reason=reason
    )


def evading(rows: Rows) -> str:
    """Who can't be audited though there is work for it, in words; empty if nobody is like that."""
    found = [
        f"{worker_id} ({row.n_audits} in a row)"
        for worker_id, row in rows.items()
        if row.n_audits >= IN_A_ROW and row.n_answered > 0
    ]
    if not found:
        return ""
    more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
    return (
        f"Audits come to nothing of {', '.join(found[:_MAX_NAMED])}{more}: they hide something, or they and the "
        "coordinator can't reach each other (`coord trust audits` says why)"
    )
