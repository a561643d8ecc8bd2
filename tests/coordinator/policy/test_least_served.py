from __future__ import annotations

from coordinator.policy.least_served import least_served, ranges_that_fit
from protocol.ids import BlockRange
from tests.coordinator.policy.random_fleets import candidate


def test_each_goes_where_the_least_is_done() -> None:
    workers = [candidate("a", 1.0, 4), candidate("b", 1.0, 4), candidate("c", 1.0, 2), candidate("none", 1.0, 0)]

    found = least_served(8, workers, {}, range(4))
    assert found == {0: BlockRange(0, 4), 1: BlockRange(4, 8), 2: BlockRange(0, 2)}
    assert least_served(8, workers, {1: BlockRange(0, 4)}, [0]) == {0: BlockRange(4, 8), 1: BlockRange(0, 4)}


def test_ends_take_room() -> None:
    fitting = list(ranges_that_fit(candidate("a", 1.0, 3, end=10), 4))

    assert fitting == [BlockRange(0, 2), BlockRange(1, 3), BlockRange(2, 4)]
    assert list(ranges_that_fit(candidate("a", 1.0, 3, end=10), 1)) == [BlockRange(0, 1)]
