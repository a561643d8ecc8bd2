"""KV memory as integers: who has reserved how much, and who waits. Pure.

A session reserves everything that it may need when it is admitted, so a step never finds the memory gone. Who
doesn't fit waits in order of arrival; nobody overtakes, so a large session isn't starved by small ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from protocol.errors import ConflictError, OverloadedError
from protocol.ids import SessionId
from protocol.messages import KvPrecision

_FEWER: Mapping[KvPrecision, str] = {
    "float32": ", or with --kv-precision bfloat16 or int8",
    "bfloat16": ", or with --kv-precision int8",
    "float16": ", or with --kv-precision int8",
    "int8": "",
}
"""What makes positions smaller, by what keys and values are kept in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The bytes that a session may come to need."""

    session_id: SessionId
    n_positions: int
    bytes_per_position: int
    held_as: KvPrecision
    """What keys and values are kept in."""

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

    def missing_bytes_for(self, request: Reservation, old: SessionId) -> int | None:
        """Bytes that others would have to give back for the request to be granted in place of what `old` was.

        None: it can't have them, since somebody waits already, or its session isn't new.
        """
        if self.waiting or self.knows(request.session_id):
            return None
        return max(0, self.reserved_bytes - self.granted[old] + request.n_bytes - self.budget_bytes)

    def knows(self, session_id: SessionId) -> bool:
        """Whether the session has a reservation, or waits for one."""
        return session_id in self.granted or any(request.session_id == session_id for request in self.waiting)


def reserve(plan: CachePlan, request: Reservation) -> CachePlan:
    """The plan with the request granted or, if it has to wait, queued.

    Raises:
        ConflictError: the session has a reservation or waits for one.
        OverloadedError: it can never fit, or too many wait already; the message has the numbers.
    """
    if plan.knows(request.session_id):
        raise ConflictError(f"session {request.session_id} is open on this worker already")
    if request.n_bytes > plan.budget_bytes:
        raise OverloadedError(
            f"{request.n_positions} positions need {request.n_bytes:,} bytes of key-value cache in "
            f"{request.held_as}; this worker has {plan.budget_bytes:,} in all, room for "
            f"{plan.budget_bytes // request.bytes_per_position} positions: ask for fewer tokens, or join with more "
            f"--memory (or --kv-memory){_FEWER[request.held_as]}"
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


def shrink(plan: CachePlan, session_id: SessionId, n_bytes: int) -> CachePlan:
    """The plan with no more than so many bytes left to the session, and with whoever now fits granted."""
    assert n_bytes <= plan.granted[session_id]
    return _grant_waiting(replace(plan, granted={**plan.granted, session_id: n_bytes}))


def exchange(plan: CachePlan, old: SessionId, request: Reservation) -> CachePlan:
    """The plan with the request granted in place of what `old` was; nothing may be missing for it."""
    assert plan.missing_bytes_for(request, old) == 0
    granted = {key: n_bytes for key, n_bytes in plan.granted.items() if key != old}
    return replace(plan, granted={**granted, request.session_id: request.n_bytes})


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
