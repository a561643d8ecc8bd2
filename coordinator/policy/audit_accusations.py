"""Failures that fresh probes didn't confirm, counted over the next audits of the same worker. Pure.

Fresh probes come one upon another. Who is honest, loaded or silent for some minutes after each wrong answer passes
them, and is accused anew by later audits, which come at random. Three accusations among a few audits are as good a
proof as three wrong answers in one: rounding brings about either as seldom.
"""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.policy.audit_rules import N_AGAIN
from protocol.ids import WorkerId

N_LATER = 8
"""Later audits of a worker that an accusation is kept for. Of honest ones that differ by rounding in a share p of
probes so many more fail as there are pairs of these: 28 p^3 at most."""

Accusations = Mapping[WorkerId, tuple[int, ...]]
"""How many of its audits ago each worker was accused; who wasn't lately isn't in it."""


def compared(accusations: Accusations, worker_id: WorkerId, *, is_accused: bool) -> Accusations:
    """A worker was compared with another one, and accused or not."""
    earlier = (n_ago + 1 for n_ago in accusations.get(worker_id, ()) if n_ago < N_LATER)
    kept = (*earlier, 0) if is_accused else tuple(earlier)
    others = {other: ago for other, ago in accusations.items() if other != worker_id}
    return {**others, worker_id: kept} if kept else others


def is_proved(accusations: Accusations, worker_id: WorkerId) -> bool:
    """Whether a worker was accused as often as it has to be wrong in one audit."""
    return len(accusations.get(worker_id, ())) > N_AGAIN
