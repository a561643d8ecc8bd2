from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.errors import ConflictError, OverloadedError
from protocol.ids import SessionId
from protocol.messages import KvPrecision
from worker.cache_plan import CachePlan, Reservation, exchange, release, reserve, resize, shrink


def reservation(name: str, n_positions: int, bytes_per_position: int = 1) -> Reservation:
    return Reservation(
        session_id=SessionId(name),
        n_positions=n_positions,
        bytes_per_position=bytes_per_position,
        held_as="float32",
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


def test_a_full_queue_refuses() -> None:
    plan = CachePlan(budget_bytes=10, max_waiting=1)
    plan = reserve(reserve(plan, reservation("a", 10)), reservation("b", 5))
    with pytest.raises(OverloadedError, match="1 sessions wait"):
        reserve(plan, reservation("c", 5))


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
    """Random reservations and releases: never overcommitted, never idle while the first waiter fits."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = CachePlan(budget_bytes=100, max_waiting=4)
        self.asked: list[SessionId] = []
        self.counter = 0

    @rule(n_positions=st.integers(1, 60), bytes_per_position=st.integers(1, 3))
    def reserve(self, n_positions: int, bytes_per_position: int) -> None:
        self.counter += 1
        request = reservation(str(self.counter), n_positions, bytes_per_position)
        try:
            self.plan = reserve(self.plan, request)
        except OverloadedError:
            assert request.n_bytes > 100 or len(self.plan.waiting) == 4
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
    def the_first_waiter_does_not_fit(self) -> None:
        if self.plan.waiting:
            assert self.plan.waiting[0].n_bytes > self.plan.free_bytes


TestPlans = Plans.TestCase
