"""How far workers are: what connections measured, kept for a while, as requests for routes say it. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from protocol.client_legs import MAX_CLIENT_LEGS, MAX_ROUND_TRIP_S, ClientLeg
from protocol.ids import WorkerId

AGAIN_S = 15.0
"""A connection that is kept is measured no more often than that, and only when a route is asked for."""
LIFE_S = 1800.0
"""What wasn't measured for so long isn't known any more, whatever signs there are that this machine has moved."""
N_SAMPLES = 8
"""The shortest of so many counts: what is longer had to wait for a program."""
CHANGE, CHANGE_S = 0.25, 0.001
"""What is said stays until what is measured is off by so much of it, and by so many seconds: else routes would hop
between workers that are as far for nothing."""
MOVED, MOVED_S = 2.0, 0.005
"""A worker that is so many times as far as before, or as near, and by so many seconds: this machine has moved."""
N_SURE = 3
"""Answers on a new connection after which it is known how far the worker is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """IP addresses of a connection."""

    own: str
    peer: str


@dataclass(slots=True)
class _Known:
    """One worker."""

    ends: Ends | None = None
    """Of the connection that it was measured on; None if that wasn't told."""
    begun_s: float = 0.0
    """When that was made."""
    before_s: float = 0.0
    """What was said before that; 0.0 if nothing, or once it has been compared."""
    samples_s: deque[float] = field(default_factory=lambda: deque(maxlen=N_SAMPLES))
    measured_s: float = 0.0
    said_s: float = 0.0


class Legs:
    """The ways of one client. Times are the loop's."""

    def __init__(self) -> None:
        self._known: OrderedDict[WorkerId, _Known] = OrderedDict()
        """The one measured longest ago first."""
        self._new_ends: dict[WorkerId, Ends] = {}
        """Of connections to workers that aren't known yet."""

    def begin(self, worker_id: WorkerId, now_s: float, ends: Ends | None = None) -> None:
        """There is a new connection: what was measured on an earlier one may have been from elsewhere."""
        if worker_id in self._known:
            known = self._known[worker_id]
            known.samples_s.clear()
            known.begun_s, known.before_s, known.ends = now_s, known.said_s, ends
        elif ends is not None:
            self._new_ends[worker_id] = ends
            while len(self._new_ends) > MAX_CLIENT_LEGS:
                del self._new_ends[next(iter(self._new_ends))]

    def leave(self, own_address: Callable[[str], str | None]) -> None:
        """Forget what was measured from another network: from where `own_address` (to whom?) isn't this one's now.

        It is None where that can't be known.
        """
        for worker_id, known in list(self._known.items()):
            own = own_address(known.ends.peer) if known.ends is not None else None
            if known.ends is not None and own is not None and own != known.ends.own:
                del self._known[worker_id]

    def add(self, worker_id: WorkerId, round_trip_s: float, now_s: float) -> None:
        """A ping was answered."""
        if worker_id not in self._known:
            self._known[worker_id] = _Known(ends=self._new_ends.pop(worker_id, None))
        known = self._known[worker_id]
        known.samples_s.append(min(round_trip_s, MAX_ROUND_TRIP_S))
        known.measured_s = now_s
        least_s = min(known.samples_s)
        if known.said_s == 0.0 or abs(least_s - known.said_s) > max(CHANGE_S, CHANGE * known.said_s):
            known.said_s = least_s
        if len(known.samples_s) >= N_SURE and known.before_s > 0.0:
            self._compare(known, least_s)
        self._known.move_to_end(worker_id)
        while len(self._known) > MAX_CLIENT_LEGS:
            self._known.popitem(last=False)

    def _compare(self, known: _Known, least_s: float) -> None:
        """If a worker isn't where it was, the others aren't either: those not measured since are forgotten."""
        nearer_s, farther_s = sorted((known.before_s, least_s))
        known.before_s = 0.0
        if farther_s >= MOVED * nearer_s and farther_s - nearer_s >= MOVED_S:
            for worker_id in [name for name, other in self._known.items() if other.measured_s < known.begun_s]:
                del self._known[worker_id]

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
