"""KV memory as integers: who has reserved how much, and who waits. Pure.

A session reserves everything that it may need when it is admitted, so a step never finds the memory gone. Who
doesn't fit waits. Next is who waits longest of the tenant that holds least for its weight, so one with many
sessions doesn't keep others out; nobody comes in before it for being smaller, so a large session isn't starved by
small ones. After so many others (`MAX_OVERTAKEN`) even the next session of the greediest is first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from protocol.errors import ConflictError, OverloadedError
from protocol.ids import SessionId
from protocol.messages import KvPrecision
from worker.fairness import UNLABELLED, Tenant

MAX_OVERTAKEN = 16
"""Sessions that may come in before one that has waited longer than all of them."""

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
    tenant: Tenant = UNLABELLED

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
    tenants: Mapping[SessionId, Tenant] = field(default_factory=dict)
    """Of those whose bytes were granted."""
    waiting: tuple[Reservation, ...] = ()
    """In order of arrival."""
    n_overtaken: int = 0
    """Sessions that came in before the one that waits longest."""

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

    A tenant may have as many waiting as there are places left: however many it sends, others find one.

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
    n_places = plan.max_waiting - len(plan.waiting)
    n_own = sum(waiting.tenant == request.tenant for waiting in plan.waiting)
    plan = _grant_waiting(replace(plan, waiting=(*plan.waiting, request)))
    if request.session_id not in plan.granted and n_own >= n_places:
        raise OverloadedError(
            f"{n_own} sessions of this API key wait for key-value cache already, and {n_places} places are left "
            f"for others ({plan.free_bytes} of {plan.budget_bytes} bytes free, {request.n_bytes} needed): "
            "try again later"
        )
    return plan


def release(plan: CachePlan, session_id: SessionId) -> CachePlan:
    """The plan without the session, waiting or granted, and with whoever now fits granted. Idempotent."""
    waiting = tuple(request for request in plan.waiting if request.session_id != session_id)
    n_overtaken = plan.n_overtaken if waiting[:1] == plan.waiting[:1] else 0
    return _grant_waiting(replace(_without(plan, session_id), waiting=waiting, n_overtaken=n_overtaken))


def shrink(plan: CachePlan, session_id: SessionId, n_bytes: int) -> CachePlan:
    """The plan with no more than so many bytes left to the session, and with whoever now fits granted."""
    assert n_bytes <= plan.granted[session_id]
    return _grant_waiting(replace(plan, granted={**plan.granted, session_id: n_bytes}))


def exchange(plan: CachePlan, old: SessionId, request: Reservation) -> CachePlan:
    """The plan with the request granted in place of what `old` was; nothing may be missing for it."""
    assert plan.missing_bytes_for(request, old) == 0
    return _granted(_without(plan, old), request)


def resize(plan: CachePlan, budget_bytes: int) -> CachePlan:
    """The plan with another budget; sessions that are open keep what they have."""
    return _grant_waiting(replace(plan, budget_bytes=budget_bytes))


def _grant_waiting(plan: CachePlan) -> CachePlan:
    while plan.waiting:
        request = _next(plan)
        if request.n_bytes > plan.free_bytes:
            break
        is_oldest = request is plan.waiting[0]
        waiting = tuple(other for other in plan.waiting if other is not request)
        n_overtaken = 0 if is_oldest else plan.n_overtaken + 1
        plan = _granted(replace(plan, waiting=waiting, n_overtaken=n_overtaken), request)
    return plan


def _next(plan: CachePlan) -> Reservation:
    """Who is to be let in before all others that wait."""
    if plan.n_overtaken >= MAX_OVERTAKEN:
        return plan.waiting[0]
    held: Counter[Tenant] = Counter()
    for session_id, n_bytes in plan.granted.items():
        held[plan.tenants[session_id]] += n_bytes
    return min(plan.waiting, key=lambda request: held[request.tenant] / request.tenant.weight)


def _granted(plan: CachePlan, request: Reservation) -> CachePlan:
    session_id = request.session_id
    return replace(
        plan,
        granted={**plan.granted, session_id: request.n_bytes},
        tenants={**plan.tenants, session_id: request.tenant},
    )


def _without(plan: CachePlan, session_id: SessionId) -> CachePlan:
    return replace(
        plan,
        granted={key: n_bytes for key, n_bytes in plan.granted.items() if key != session_id},
        tenants={key: tenant for key, tenant in plan.tenants.items() if key != session_id},
    )
