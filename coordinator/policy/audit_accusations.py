"""Failures that fresh probes didn't confirm, counted over the next audits of the same worker. Pure.

Fresh probes come one upon another. Who is honest, loaded or silent for some minutes after each wrong answer passes
them, and is accused anew by later audits, which come at random. Three accusations among a few audits are as good a
proof as three wrong answers in one: rounding brings about either as seldom. They are a part of what is kept of a
worker's trust, so neither a restart nor leaving and coming back soon forgets them, and a pardon does. Who stays
away until nothing else is left of its trust is as new, as whoever comes with a new identity is at any time.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.policy.audit_rules import N_AGAIN
from coordinator.policy.changes import Change
from coordinator.policy.effects import SaveTrust
from coordinator.policy.trust import NO_RECORD
from coordinator.policy.trust_events import AuditEnded

N_LATER = 8
"""Later audits of a worker that an accusation is kept for. Of honest ones that differ by rounding in a share p of
probes so many more fail as there are pairs of these: 28 p^3 at most."""

Accusations = tuple[int, ...]
"""How many of its audits ago a worker was accused, each time that it was lately."""


def after_audit(accusations: Accusations, *, is_accused: bool) -> Accusations:
    """What is kept of a worker that was compared with another one, and accused or not."""
    earlier = tuple(n_ago + 1 for n_ago in accusations if n_ago < N_LATER)
    return (*earlier, 0) if is_accused else earlier


def is_proved(accusations: Accusations) -> bool:
    """Whether a worker was accused as often as it has to be wrong in one audit."""
    return len(accusations) > N_AGAIN


def accusations_counted(change: Change, event: AuditEnded) -> Change:
    """The same with what is kept of those that were compared; what is proved has counted, and begins anew."""
    for worker_id in event.compared:
        state = change.state
        record = state.trust.get(worker_id, NO_RECORD)
        found = after_audit(record.accused_ago, is_accused=worker_id == event.accused)
        after = replace(record, accused_ago=() if is_proved(found) else found)
        if after != record and (worker_id in state.workers or worker_id in state.trust):
            state = replace(state, trust={**state.trust, worker_id: after})
            change = replace(change, state=state).then(SaveTrust(worker_id=worker_id, record=after))
    return change
