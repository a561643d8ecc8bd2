"""How far workers are: what connections measured, kept for a while, as requests for routes say it. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container
from dataclasses import dataclass, field

from protocol.client_legs import MAX_CLIENT_LEGS, MAX_ROUND_TRIP_S, ClientLeg
from protocol.ids import WorkerId

AGAIN_S = 15.0
"""A connection that is kept is measured no more often than that, and only when a route is asked for."""
LIFE_S = 1800.0
"""What wasn't measured for so long isn't known any more: this machine may be somewhere else."""
N_SAMPLES = 8
"""The shortest of so many counts: what is longer had to wait for a program."""
CHANGE, CHANGE_S = 0.25, 0.001
"""What is said stays until what is measured is off by so much of it, and by so many seconds: else routes would hop
between workers that are as far for nothing."""


@dataclass(slots=True)
class _Known:
    """One worker."""

    samples_s: deque[float] = field(default_factory=lambda: deque(maxlen=N_SAMPLES))
    measured_s: float = 0.0
    said_s: float = 0.0


class Legs:
    """The ways of one client. Times are the loop's."""

    def __init__(self) -> None:
        self._known: OrderedDict[WorkerId, _Known] = OrderedDict()
        """The one measured longest ago first."""

    def begin(self, worker_id: WorkerId) -> None:
        """There is a new connection: what was measured on an earlier one may have been from elsewhere."""
        if worker_id in self._known:
            self._known[worker_id].samples_s.clear()

    def add(self, worker_id: WorkerId, round_trip_s: float, now_s: float) -> None:
        """A ping was answered."""
        known = self._known.setdefault(worker_id, _Known())
        known.samples_s.append(min(round_trip_s, MAX_ROUND_TRIP_S))
        known.measured_s = now_s
        least_s = min(known.samples_s)
        if known.said_s == 0.0 or abs(least_s - known.said_s) > max(CHANGE_S, CHANGE * known.said_s):
            known.said_s = least_s
        self._known.move_to_end(worker_id)
        while len(self._known) > MAX_CLIENT_LEGS:
            self._known.popitem(last=False)

    def is_due(self, worker_id: WorkerId, now_s: float) -> bool:
        """Whether a connection that is there should be measured again."""
        known = self._known.get(worker_id)
        return known is None or now_s - known.measured_s >= AGAIN_S

    def said(self, connected: Container[WorkerId], now_s: float) -> tuple[ClientLeg, ...]:
        """What a request for a route says; `connected` are those that needn't be dialled."""
        return tuple(
            ClientLeg(worker_id=worker_id, round_trip_s=known.said_s, is_connected=worker_id in connected)
            for worker_id, known in sorted(self._known.items())
            if now_s - known.measured_s < LIFE_S
        )
