from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.breakers import (
    FIRST_OPEN_S,
    FORGET_S,
    LONGEST_OPEN_S,
    MAX_BREAKERS,
    MAX_FAILURES,
    TRIAL_EVERY_S,
    WINDOW_S,
    Breakers,
    avoided,
    failed,
    note,
    succeeded,
    tried,
)
from protocol.ids import SessionId, WorkerId

A, B, C, D = (WorkerId(name) for name in "abcd")
ROUTE = (A, B, C)


class Panel:
    """Breakers under a clock of their own."""

    def __init__(self) -> None:
        self.breakers = Breakers()
        self.now_s = 1000.0
        self.n_sessions = 0

    def fail(
        self,
        worker: WorkerId | None = B,
        *,
        noticed_by: WorkerId | None = None,
        code: str = "hop_lost",
        session: str | None = None,
        route: tuple[WorkerId, ...] = ROUTE,
    ) -> None:
        self.n_sessions += 1
        self.breakers = failed(
            self.breakers,
            session_id=SessionId(session or f"s{self.n_sessions}"),
            route=route,
            worker_id=worker,
            noticed_by=noticed_by,
            code=code,
            now_s=self.now_s,
        )

    def opened(self) -> Panel:
        for _ in range(3):
            self.fail()
        assert self.workers() == {B}
        return self

    def workers(self) -> frozenset[WorkerId]:
        return avoided(self.breakers, self.now_s).workers

    def links(self) -> frozenset[tuple[WorkerId, WorkerId]]:
        return avoided(self.breakers, self.now_s).links


def test_three_sessions_that_fail_within_the_window_open_it() -> None:
    panel = Panel()
    for _ in range(2):
        panel.fail()
        assert panel.workers() == frozenset()
    panel.fail()
    assert panel.workers() == {B}
    assert "3 sessions failed" in note(panel.breakers, B, panel.now_s)
    assert note(panel.breakers, A, panel.now_s) == ""


def test_a_half_open_one_says_that_it_is_tried() -> None:
    panel = Panel().opened()
    panel.now_s += FIRST_OPEN_S
    panel.breakers = tried(panel.breakers, ROUTE, panel.now_s)
    assert "tried with one session a second" in note(panel.breakers, B, panel.now_s)
    assert "for 0 s" not in note(panel.breakers, B, panel.now_s)


def test_a_session_counts_once_and_only_for_workers_of_its_route() -> None:
    panel = Panel()
    for _ in range(9):
        panel.fail(session="the same")
        panel.fail(D)
        panel.fail(None)
        panel.fail(code="stalled")
        panel.fail(code="cancelled")
    assert panel.workers() == frozenset()


def test_failures_long_ago_do_not_count() -> None:
    panel = Panel()
    for _ in range(9):
        panel.fail()
        panel.now_s += WINDOW_S / 2
    assert panel.workers() == frozenset()


def test_being_overloaded_counts_lightly() -> None:
    panel = Panel()
    for _ in range(11):
        panel.fail(code="overloaded")
    assert panel.workers() == frozenset()
    panel.fail(code="overloaded")
    assert panel.workers() == {B}


def test_failures_on_one_link_are_the_links_and_on_several_the_workers() -> None:
    panel = Panel()
    for _ in range(4):
        panel.fail(C, noticed_by=A)
    assert (panel.workers(), panel.links()) == (frozenset(), {(B, C)}), "what is lost is noticed by the hop before"
    assert "the way from b" in note(panel.breakers, C, panel.now_s)
    panel.fail(C, noticed_by=D, route=(D, C))
    assert panel.workers() == {C}


def test_what_a_later_hop_or_the_worker_itself_says_is_about_the_worker() -> None:
    for noticed_by in (C, B, D):
        panel = Panel()
        for _ in range(3):
            panel.fail(B, noticed_by=noticed_by)
        assert (panel.workers(), panel.links()) == ({B}, frozenset())


def test_it_lets_one_route_a_second_through_when_its_time_is_over() -> None:
    panel = Panel().opened()
    panel.now_s += FIRST_OPEN_S
    assert panel.workers() == frozenset()
    panel.breakers = tried(panel.breakers, ROUTE, panel.now_s)
    assert panel.workers() == {B}
    panel.now_s += TRIAL_EVERY_S
    assert panel.workers() == frozenset()


def test_a_trial_that_fails_opens_it_for_twice_as_long_up_to_a_minute() -> None:
    panel = Panel().opened()
    for expected_s in (10.0, 20.0, 40.0, LONGEST_OPEN_S, LONGEST_OPEN_S):
        panel.now_s += LONGEST_OPEN_S
        panel.fail()
        panel.now_s += expected_s - 0.1
        assert panel.workers() == {B}
        panel.now_s += 0.2
        assert panel.workers() == frozenset()


def test_a_failure_of_a_session_from_before_does_not_make_it_longer() -> None:
    panel = Panel().opened()
    panel.now_s += FIRST_OPEN_S - 0.1
    panel.fail()
    panel.now_s += 0.2
    assert panel.workers() == frozenset()


def test_a_finished_generation_closes_what_it_went_over() -> None:
    panel = Panel().opened()
    panel.breakers = succeeded(panel.breakers, (A, C))
    assert panel.workers() == {B}
    panel.breakers = succeeded(panel.breakers, ROUTE)
    assert panel.workers() == frozenset()
    assert panel.breakers == Breakers()
    for _ in range(3):
        panel.fail(C, noticed_by=B)
    panel.breakers = succeeded(panel.breakers, (A, C))
    assert panel.links() == {(B, C)}
    panel.breakers = succeeded(panel.breakers, (B, C))
    assert panel.links() == frozenset()


def test_what_is_old_is_forgotten_and_memory_is_bounded() -> None:
    panel = Panel().opened()
    for _ in range(100):
        panel.fail()
    assert len(panel.breakers.of[B].failures) == MAX_FAILURES
    panel.now_s += FORGET_S
    panel.fail(C)
    assert set(panel.breakers.of) == {C}
    for i in range(MAX_BREAKERS + 5):
        panel.now_s += 0.001
        panel.fail(WorkerId(f"w{i}"), route=(WorkerId(f"w{i}"),))
    assert len(panel.breakers.of) == MAX_BREAKERS
    assert C not in panel.breakers.of


workers = st.sampled_from([A, B, C, D])


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["fail", "succeed", "try", "wait"]),
            workers,
            st.none() | workers,
            st.floats(0.0, 100.0),
            st.sampled_from(["hop_lost", "overloaded", "stalled"]),
        ),
        max_size=60,
    )
)
def test_nothing_is_avoided_for_ever_nor_without_three_sessions(
    steps: list[tuple[str, WorkerId, WorkerId | None, float, str]],
) -> None:
    panel = Panel()
    n_blamed = dict.fromkeys((A, B, C, D), 0)
    for step, worker, other, seconds, code in steps:
        match step:
            case "fail":
                panel.fail(worker, noticed_by=other, code=code)
                n_blamed[worker] += 1
            case "succeed":
                panel.breakers = succeeded(panel.breakers, ROUTE)
                assert panel.workers().isdisjoint(ROUTE)
            case "try":
                panel.breakers = tried(panel.breakers, ROUTE, panel.now_s)
            case _:
                panel.now_s += seconds
        assert all(n_blamed[worker] >= 3 for worker in panel.workers())
        assert all(bool(note(panel.breakers, worker, panel.now_s)) for worker in panel.workers())
    panel.now_s += LONGEST_OPEN_S
    assert not panel.workers()
    assert not panel.links()
