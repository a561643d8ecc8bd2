from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.timings import PHASES, GenerationClock, Phase
from protocol.hop_timings import HopTimings
from protocol.ids import WorkerId

HEAD, TAIL = (WorkerId("w-head"), 0, 2), (WorkerId("w-tail"), 2, 4)


def hop(queue_us: int, compute_us: int, sampling_us: int = 0) -> HopTimings:
    return HopTimings(memory_us=1000, queue_us=queue_us, compute_us=compute_us, sampling_us=sampling_us)


def routed(clock: GenerationClock, now_s: float) -> None:
    clock.enter("route", now_s)
    clock.routed([HEAD, TAIL])


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(PHASES))))
def test_the_phases_are_all_the_time_there_was(steps: list[tuple[float, Phase]]) -> None:
    clock, now_s = GenerationClock(7.0), 7.0
    for seconds, phase in steps:
        now_s += seconds
        clock.enter(phase, now_s)
    got = clock.timings()
    assert got.total_s == pytest.approx(now_s - 7.0)
    phases = (got.prepare_s, got.route_s, got.open_s, got.prefill_s, got.decode_s)
    assert sum(phases) == pytest.approx(got.total_s)
    assert min(phases) >= 0


def test_what_stages_say_is_told_apart_by_the_first_token_and_the_rest_is_wire() -> None:
    clock = GenerationClock(0.0)
    routed(clock, 1.0)
    clock.enter("open", 3.0)
    clock.opened(4.0)
    clock.took((hop(10, 20), hop(30, 40, 5)), 10.0)
    clock.took((), 10.5)  # one of several tokens of a round
    clock.took((hop(1_000_010, 2_000_020), hop(30, 1_000_040, 500_005)), 16.0)
    got = clock.timings()
    assert (got.prepare_s, got.route_s, got.open_s, got.prefill_s, got.decode_s) == (1.0, 2.0, 1.0, 6.0, 6.0)
    head, tail = got.stages
    assert (head.worker_id, head.start, head.end, head.memory_s) == ("w-head", 0, 2, 0.001)
    assert (head.prefill_queue_s, head.prefill_compute_s) == (10e-6, 20e-6)
    assert (head.decode_queue_s, head.decode_compute_s, head.decode_sampling_s) == (1.0, 2.0, 0.0)
    assert (tail.decode_queue_s, tail.decode_compute_s, tail.decode_sampling_s) == (0.0, 1.0, 0.5)
    assert got.wire_s == pytest.approx(6.0 - 4.5)


def test_a_failover_adds_its_stages_and_its_time() -> None:
    clock = GenerationClock(0.0)
    routed(clock, 0.0)
    clock.enter("open", 1.0)
    clock.took((hop(0, 1), hop(0, 1)), 2.0)
    clock.took((hop(0, 1_000_001), hop(0, 1)), 4.0)
    routed(clock, 10.0)
    clock.enter("open", 11.0)
    clock.took((hop(0, 1), hop(0, 1)), 12.0)
    clock.took((hop(0, 1), hop(0, 2_000_001)), 15.0)
    got = clock.timings()
    assert (got.route_s, got.open_s, got.decode_s) == (2.0, 2.0, 11.0)
    assert [stage.worker_id for stage in got.stages] == ["w-head", "w-tail"] * 2
    assert got.wire_s == pytest.approx(11.0 - 3.0)


@pytest.mark.parametrize("said", [(), (hop(1, 1),), (hop(1, 1),) * 3])
def test_of_a_worker_too_old_to_say_nothing_is_made_up(said: tuple[HopTimings, ...]) -> None:
    clock = GenerationClock(0.0)
    routed(clock, 0.0)
    clock.took(said, 1.0)
    clock.took(said, 2.0)
    assert (clock.timings().stages, clock.timings().wire_s) == ((), 0.0)


def test_a_worker_that_counts_backwards_or_too_much_makes_nothing_negative() -> None:
    clock = GenerationClock(0.0)
    routed(clock, 0.0)
    clock.took((hop(9, 9, 9), hop(9, 9, 9)), 1.0)
    clock.took((hop(0, 0, 0), hop(10**15, 10**15)), 2.0)
    got = clock.timings()
    assert got.stages[0].decode_s == 0.0
    assert got.wire_s == 0.0
