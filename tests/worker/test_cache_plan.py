from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.errors import ConflictError, OverloadedError
from protocol.ids import SessionId
from protocol.messages import KvPrecision
from worker.cache_plan import MAX_OVERTAKEN, CachePlan, Reservation, exchange, release, reserve, resize, shrink
from worker.fairness import Tenant

A, B = Tenant("a"), Tenant("b")


def reservation(
    name: str, n_positions: int, bytes_per_position: int = 1, tenant: Tenant | None = None
) -> Reservation:
    return Reservation(
        session_id=SessionId(name),
        n_positions=n_positions,
        bytes_per_position=bytes_per_position,
        held_as="float32",
        tenant=tenant or Tenant(),
    )


def test_what_fits_is_granted_and_given_back() -> None:
    plan = reserve(CachePlan(budget_bytes=100, max_waiting=2), reservation("a", 10, 6))
    assert (plan.free_bytes, plan.granted) == (40, {"a": 60})
    assert release(plan, SessionId("a")).free_bytes == 100


def test_what_does_not_fit_now_waits_and_is_granted_in_order() -> None:
    plan = CachePlan(budget_bytes=100, max_waiting=3)
    for name, size in (("a", 80), ("b", 90), ("c", 10)):
        plan = reserve(plan, reservation(name, size))
    assert list(plan.granted) == ["a"]  # c would fit, but b was there first
    plan = release(plan, SessionId("a"))
    assert list(plan.granted) == ["b", "c"]


@pytest.mark.parametrize(
    ("held_as", "advice"),
    [("float32", "bfloat16 or int8"), ("bfloat16", "int8"), ("float16", "int8"), ("int8", "")],
)
def test_what_can_never_fit_is_refused_with_the_numbers_and_what_to_do(held_as: KvPrecision, advice: str) -> None:
    request = replace(reservation("a", 1010, 2), held_as=held_as)
    with pytest.raises(OverloadedError) as caught:
        reserve(CachePlan(budget_bytes=2001, max_waiting=3), request)
    assert caught.value.message == (
        f"1010 positions need 2,020 bytes of key-value cache in {held_as}; this worker has 2,001 in all, room for "
        "1000 positions: ask for fewer tokens, or join with more --memory (or --kv-memory)"
        + (f", or with --kv-precision {advice}" if advice else "")
    )


def test_a_tenant_may_have_as_many_waiting_as_there_are_places_left() -> None:
    plan = reserve(CachePlan(budget_bytes=10, max_waiting=4), reservation("a", 10, tenant=A))
    for name in ("b", "c"):
        plan = reserve(plan, reservation(name, 5, tenant=A))
    with pytest.raises(
        OverloadedError, match=r"2 sessions of this API key wait .* 2 places are left .*0 of 10 bytes"
    ):
        reserve(plan, reservation("d", 5, tenant=A))
    plan = reserve(plan, reservation("e", 5, tenant=B))
    assert [request.session_id for request in plan.waiting] == ["b", "c", "e"]


def test_who_holds_least_for_its_weight_is_let_in_first() -> None:
    high = Tenant("h", "high")
    plan = CachePlan(budget_bytes=100, max_waiting=99)
    for name, n_bytes, tenant in (("a", 60, A), ("h", 40, high), ("a2", 20, A), ("b", 20, B), ("h2", 20, high)):
        plan = reserve(plan, reservation(name, n_bytes, tenant=tenant))
    order = []
    for n_left in (40, 20, 0):
        before = set(plan.granted)
        plan = shrink(plan, SessionId("a"), n_left)
        order += sorted(set(plan.granted) - before)
    assert order == ["b", "h2", "a2"]


def test_a_session_that_is_next_and_fits_need_not_wait_behind_one_that_does_not() -> None:
    plan = reserve(CachePlan(budget_bytes=100, max_waiting=9), reservation("a", 80, tenant=A))
    plan = reserve(plan, reservation("a2", 30, tenant=A))
    assert set(reserve(plan, reservation("b", 20, tenant=B)).granted) == {"a", "b"}
    assert set(reserve(plan, reservation("a3", 20, tenant=A)).granted) == {"a"}


def test_after_so_many_others_the_greediest_is_let_in_too() -> None:
    plan = reserve(CachePlan(budget_bytes=100, max_waiting=99), reservation("a", 90, tenant=A))
    plan = reserve(plan, reservation("a2", 20, tenant=A))
    for i in range(MAX_OVERTAKEN + 3):
        plan = reserve(plan, reservation(f"b{i}", 10, tenant=Tenant(f"b{i}")))
        plan = release(plan, SessionId(f"b{i}"))
        assert (plan.n_overtaken, f"b{i}" in plan.granted) == (min(i + 1, MAX_OVERTAKEN), False)
    plan = reserve(plan, reservation("last", 10, tenant=B))
    assert set(plan.granted) == {"a"}
    plan = shrink(plan, SessionId("a"), 75)
    assert (set(plan.granted), plan.n_overtaken) == ({"a", "a2"}, 0)


@pytest.mark.parametrize("name", ["open", "queued"])
def test_a_session_reserves_once(name: str) -> None:
    plan = CachePlan(budget_bytes=10, max_waiting=3)
    plan = reserve(reserve(plan, reservation("open", 10)), reservation("queued", 5))
    with pytest.raises(ConflictError):
        reserve(plan, reservation(name, 1))


def test_what_is_exchanged_counts_once_and_nobody_is_overtaken() -> None:
    plan = CachePlan(budget_bytes=10, max_waiting=3)
    plan = reserve(reserve(plan, reservation("a", 4)), reservation("b", 5))
    assert plan.missing_bytes_for(reservation("c", 5), SessionId("a")) == 0
    assert exchange(plan, SessionId("a"), reservation("c", 5)).granted == {"b": 5, "c": 5}
    assert plan.missing_bytes_for(reservation("c", 8), SessionId("a")) == 3
    assert plan.missing_bytes_for(reservation("b", 1), SessionId("a")) is None
    plan = reserve(plan, reservation("d", 2))
    assert plan.missing_bytes_for(reservation("c", 1), SessionId("a")) is None
    assert (plan.missing_bytes, resize(plan, 7).missing_bytes) == (1, 4)
    assert release(plan, SessionId("d")).missing_bytes == 0


def test_what_is_given_back_goes_to_who_waits() -> None:
    plan = CachePlan(budget_bytes=10, max_waiting=3)
    plan = reserve(reserve(plan, reservation("a", 8)), reservation("b", 5))
    assert shrink(plan, SessionId("a"), 6).granted == {"a": 6}
    assert shrink(plan, SessionId("a"), 5).granted == {"a": 5, "b": 5}


def test_a_lower_budget_takes_nothing_away() -> None:
    plan = reserve(CachePlan(budget_bytes=100, max_waiting=3), reservation("a", 80))
    plan = resize(plan, 50)
    assert (plan.granted, plan.free_bytes) == ({"a": 80}, 0)


def test_a_higher_budget_lets_waiters_in() -> None:
    plan = CachePlan(budget_bytes=100, max_waiting=3)
    plan = reserve(reserve(plan, reservation("a", 80)), reservation("b", 80))
    assert set(resize(plan, 160).granted) == {"a", "b"}


@given(st.text(max_size=3))
def test_releasing_what_is_not_there_changes_nothing(name: str) -> None:
    plan = CachePlan(budget_bytes=100, max_waiting=3)
    assert release(plan, SessionId(name)) == plan


class Plans(RuleBasedStateMachine):
    """Random reservations and releases: never overcommitted, nobody lost, nobody kept out by more than so many."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = CachePlan(budget_bytes=100, max_waiting=4)
        self.asked: list[SessionId] = []
        self.counter = 0

    @rule(n_positions=st.integers(1, 60), bytes_per_position=st.integers(1, 3), tenant=st.sampled_from([A, B]))
    def reserve(self, n_positions: int, bytes_per_position: int, tenant: Tenant) -> None:
        self.counter += 1
        request = reservation(str(self.counter), n_positions, bytes_per_position, tenant)
        try:
            self.plan = reserve(self.plan, request)
        except OverloadedError:
            n_waiting = len(self.plan.waiting)
            n_own = sum(waiting.tenant == tenant for waiting in self.plan.waiting)
            assert request.n_bytes > 100 or n_own >= 4 - n_waiting
        else:
            self.asked.append(request.session_id)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(self.asked))
        self.asked.remove(session_id)
        self.plan = release(self.plan, session_id)

    @invariant()
    def never_overcommitted(self) -> None:
        assert self.plan.reserved_bytes <= self.plan.budget_bytes

    @invariant()
    def nobody_is_lost(self) -> None:
        known = [*self.plan.granted, *(w.session_id for w in self.plan.waiting)]
        assert sorted(known) == sorted(self.asked)

    @invariant()
    def it_is_known_whose_bytes_they_are(self) -> None:
        assert set(self.plan.tenants) == set(self.plan.granted)
        assert self.plan.n_overtaken <= MAX_OVERTAKEN

    @invariant()
    def not_everybody_who_waits_would_fit(self) -> None:
        if self.plan.waiting:
            assert max(request.n_bytes for request in self.plan.waiting) > self.plan.free_bytes


TestPlans = Plans.TestCase
