from __future__ import annotations

from coordinator.quota_clock import SteadyClock


def test_it_goes_on_evenly_whatever_the_wall_clock_does() -> None:
    walls, steady = iter([1000.0]), iter([5.0, 6.0, 9.5])
    clock = SteadyClock(lambda: next(walls), lambda: next(steady))
    assert [clock(), clock()] == [1001.0, 1004.5]
