"""KV memory as integers: who has reserved how much, and who waits. Pure.

A session reserves everything that it may need when it is admitted, so a step never finds the memory gone. Who
doesn't fit waits in order of arrival; nobody overtakes, so a large session isn't starved by small ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from protocol.errors import ConflictError, OverloadedError
from protocol.ids import SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The bytes that a session may come to need."""

    session_id: SessionId
    n_positions: int
    bytes_per_position: int

    @property
    def n_bytes(self) -> int:
        """All of them."""
        return self.n_positions * self.bytes_per_position


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """Who holds what. Invariant: reserved bytes never exceed the budget, except after the budget was lowered."""

    budget_bytes: int
    max_waiting: int
    granted: Mapping[SessionId, int] = field(default_factory=dict)
    """Bytes by session."""
    waiting: tuple[Reservation, ...] = ()

    @property
    def reserved_bytes(self) -> int:
        """Bytes granted, together."""
        return sum(self.granted.values())

    @property
    def free_bytes(self) -> int:
        """Bytes that can still be granted."""
        return max(0, self.budget_bytes - self.reserved_bytes)

    @property
    def missing_bytes(self) -> int:
        """Bytes that would have to be given back for nobody to wait, and the budget to be kept."""
        wanted = sum(request.n_bytes for request in self.waiting)
        return max(0, self.reserved_bytes + wanted - self.budget_bytes)


def reserve(plan: CachePlan, request: Reservation) -> CachePlan:
    """The plan with the request granted or, if it has to wait, queued.

    Raises:
        ConflictError: the session has a reservation or waits for one.
        OverloadedError: it can never fit, or too many wait already; the message has the numbers.
    """
    if request.session_id in plan.granted or any(w.session_id == request.session_id for w in plan.waiting):
        raise ConflictError(f"session {request.session_id} is open on this worker already")
    if request.n_bytes > plan.budget_bytes:
        raise OverloadedError(
            f"{request.n_positions} positions need {request.n_bytes} bytes of key-value cache; this worker has "
            f"{plan.budget_bytes} in all: ask for fewer tokens, or give the worker more memory"
        )
    if not plan.waiting and request.n_bytes <= plan.free_bytes:
        return replace(plan, granted={**plan.granted, request.session_id: request.n_bytes})
    if len(plan.waiting) >= plan.max_waiting:
        raise OverloadedError(
            f"{len(plan.waiting)} sessions wait for key-value cache already ({plan.free_bytes} of "
            f"{plan.budget_bytes} bytes free, {request.n_bytes} needed): try again later"
        )
    return replace(plan, waiting=(*plan.waiting, request))


def release(plan: CachePlan, session_id: SessionId) -> CachePlan:
    """The plan without the session, waiting or granted, and with whoever now fits granted. Idempotent."""
    granted = {key: n_bytes for key, n_bytes in plan.granted.items() if key != session_id}
    waiting = tuple(request for request in plan.waiting if request.session_id != session_id)
    return _grant_waiting(replace(plan, granted=granted, waiting=waiting))


def hand_over(plan: CachePlan, old: SessionId, new: SessionId) -> CachePlan:
    """The plan with what `old` was granted in the name of `new`.

    Raises:
        ConflictError: `new` has a reservation or waits for one.
    """
    if new in plan.granted or any(request.session_id == new for request in plan.waiting):
        raise ConflictError(f"session {new} is open on this worker already")
    granted = {new if key == old else key: n_bytes for key, n_bytes in plan.granted.items()}
    return replace(plan, granted=granted)


def resize(plan: CachePlan, budget_bytes: int) -> CachePlan:
    """The plan with another budget; sessions that are open keep what they have."""
    return _grant_waiting(replace(plan, budget_bytes=budget_bytes))


def _grant_waiting(plan: CachePlan) -> CachePlan:
    granted, free, n_granted = dict(plan.granted), plan.free_bytes, 0
    for request in plan.waiting:
        if request.n_bytes > free:
            break
        granted[request.session_id] = request.n_bytes
        free -= request.n_bytes
        n_granted += 1
    return replace(plan, granted=granted, waiting=plan.waiting[n_granted:])
