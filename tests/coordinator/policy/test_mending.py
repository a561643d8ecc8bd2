"""Blocks that nobody holds, where mending them must not break what is served meanwhile."""

from __future__ import annotations

from coordinator.policy.events import ReplicasAsked
from coordinator.policy.routing import Route, cheapest_route
from protocol.ids import ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, memory_for

M = ModelName("m")


def test_a_layout_that_is_served_is_not_made_anew_though_nobody_is_to_hold_a_part_of_it() -> None:
    """What grew failed to load more, so its blocks are nobody's; but it serves what it had."""
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a", memory=memory_for(14, ends=2))
    fleet.join("b", memory=memory_for(5, ends=1))
    fleet.wait(2)
    fleet.all_ready()
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    fleet.wait(1)
    assert fleet.blocks() == {"a": "0:8", "b": "4:8"}
    fleet.join("c", memory=memory_for(3, ends=1))
    fleet.report("a", "failed", "disk full")
    fleet.wait(10)

    assert [str(span.blocks) for span in fleet.state.workers[WorkerId("a")].assignment.leaving] == ["0:4"]
    assert isinstance(cheapest_route(fleet.state, M), Route)
    assert fleet.blocks() == {"a": "0:8", "b": "4:8", "c": "0:3"}, "b could have 3:8, but not beside 4:8"
