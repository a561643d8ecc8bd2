from __future__ import annotations

import msgspec

from coordinator.policy.moving import is_safe, next_step, reachable
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, memory_for

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")


def held(fleet: Fleet, start: int, end: int) -> tuple[SpanAssignment, ...]:
    model = fleet.state.models[ModelName("m")]
    return (SpanAssignment(model=model.name, revision=model.revision, blocks=BlockRange(start, end)),)


def halves(n_blocks_each: int) -> Fleet:
    """a holds 0:4 and b 4:8; each has room for so many blocks and both ends."""
    fleet = Fleet()
    fleet.do(added())
    for name in "ab":
        fleet.join(name, memory=memory_for(n_blocks_each, ends=2))
    fleet.wait(2)
    fleet.all_ready()
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}
    return fleet


def test_two_who_would_change_places_dont_whoever_is_ready_first() -> None:
    fleet = halves(20)
    places = {A: held(fleet, 4, 8), B: held(fleet, 0, 4)}

    assert not is_safe(fleet.state, places)
    assert next_step(fleet.state, places) == {}
    assert reachable(fleet.state, places) == {}


def test_who_grows_first_lets_the_other_shrink() -> None:
    fleet = halves(12)
    target = {B: held(fleet, 6, 8), A: held(fleet, 0, 6)}

    assert next_step(fleet.state, target) == {A: held(fleet, 0, 6)}
    assert reachable(fleet.state, target) == target


def test_who_cant_load_beside_what_it_serves_changes_only_if_others_serve_that() -> None:
    fleet = halves(7)
    target = {A: held(fleet, 0, 6)}
    assert next_step(fleet.state, target) == {}

    fleet.join("c", memory=memory_for(4, ends=1), pinned_blocks=BlockRange(0, 4))
    fleet.wait(2)
    fleet.report("c")
    fleet.wait(2)
    assert next_step(fleet.state, target) == target
    assert not is_safe(fleet.state, {A: held(fleet, 0, 6), C: ()})


def test_what_nobody_serves_anyway_holds_nobody_back() -> None:
    fleet = halves(7)
    model = msgspec.structs.replace(held(fleet, 0, 4)[0], blocks=BlockRange(0, 6))
    fleet.report("b", "failed", "the disk is full")

    assert is_safe(fleet.state, {A: (model,)})
