from __future__ import annotations

import random

import pytest

from benchmarks import routing
from benchmarks.routing import BOUND_S, FLEETS, N_BLOCKS, cases, cpu_s, row
from coordinator.policy.routing import Route


def test_each_case_is_a_route_over_all_blocks_that_the_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "N_WORKERS", 64)
    for case in cases(1):
        route = case.search()
        assert isinstance(route, Route), case
        ends = (2, N_BLOCKS - 2) if "private" in case.asked else (0, N_BLOCKS)
        assert (route.hops[0].blocks.start, route.hops[-1].blocks.end) == ends


def test_every_fleet_has_as_many_as_it_says() -> None:
    assert {len(list(make(random.Random(1)))) for make in FLEETS.values()} == {1000}


def test_times_are_the_least_of_a_few_and_counted_over_the_bound() -> None:
    calls: list[int] = []
    assert cpu_s(lambda: calls.append(1), 3) < BOUND_S
    assert len(calls) == 4
    assert row("all", [0.001] * 99 + [0.020]) == "| all | 100 | 1.0 | 1.0 | 20.0 | 1 |"
