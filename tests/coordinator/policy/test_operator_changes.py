from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.effects import DeletePin, SavePin, WriteAudit
from coordinator.policy.events import (
    AssignmentPinned,
    AssignmentUnpinned,
    SettingsChanged,
    SocketLost,
    WorkerRemoved,
)
from coordinator.policy.operator_changes import spans_without
from coordinator.policy.pinning import consequences, moved
from coordinator.policy.pins import Pin
from coordinator.policy.state import PolicySettings
from coordinator.policy.stored import StoredState, StoredWorker, restored
from protocol.errors import ConflictError
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, memory_for

A, B, C = (WorkerId(name) for name in "abc")
M = ModelName("m")


def pin(start: int, end: int, **more: object) -> Pin:
    return Pin(model=M, blocks=BlockRange(start, end), by="k1", **more)  # type: ignore[arg-type]


def served_fleet(*names: str, memory: int | None = None) -> Fleet:
    """A model of 8 blocks on these workers, all ready."""
    fleet = Fleet()
    fleet.do(added())
    for name in names:
        fleet.join(name, memory=memory_for(8, ends=2) if memory is None else memory)
    fleet.wait(3)
    fleet.all_ready()
    return fleet


def held(fleet: Fleet) -> dict[str, list[str]]:
    return {w: [str(span.blocks) for span in r.assignment.spans] for w, r in fleet.state.workers.items()}


def test_a_pin_gives_the_worker_these_blocks_and_the_planner_works_round_it() -> None:
    fleet = served_fleet("a", "b")
    effects = fleet.do(AssignmentPinned(worker_id=A, pin=pin(0, 2, reason="fast disk")))
    assert SavePin(worker_id=A, pin=pin(0, 2, reason="fast disk")) in effects
    fleet.wait(3)
    fleet.all_ready()
    fleet.wait(3)
    assert held(fleet)["a"] == ["0:2"]
    assert held(fleet)["b"] == ["2:8"], "what nobody else holds was filled in"
    assert "pinned to blocks 0:2 of m by an operator (k1): fast disk" in fleet.state.workers[A].assignment.reason
    fleet.wait(2000)  # whatever else would be better
    assert held(fleet)["a"] == ["0:2"]


def test_a_pin_outlives_a_restart_and_the_workers_being_forgotten() -> None:
    fleet = served_fleet("a", "b")
    fleet.do(AssignmentPinned(worker_id=A, pin=pin(2, 5)))
    row = StoredWorker(worker_id=A, status="present", hostname="", url="", device=None, seen_s=fleet.now_s)
    models = tuple(fleet.state.models.values())
    again = Fleet(
        restored(StoredState(workers=(row,), models=models, pins=fleet.state.pins), PolicySettings(), fleet.now_s)
    )
    again.wait(2 * 3600, beating=False)
    assert A not in again.state.workers, "forgotten"
    again.join("a")
    again.wait(3)
    assert held(again)["a"] == ["2:5"]


def test_unpinned_it_keeps_what_it_has_and_no_longer_says_that_it_is_pinned() -> None:
    fleet = served_fleet("a", "b")
    fleet.do(AssignmentPinned(worker_id=A, pin=pin(2, 5)))
    fleet.wait(3)
    fleet.all_ready()
    effects = fleet.do(AssignmentUnpinned(worker_id=A, by="k2"))
    assert DeletePin(worker_id=A) in effects
    assert next(e.details for e in effects if isinstance(e, WriteAudit)).startswith("by k2; before: pinned to")
    assert fleet.state.workers[A].pinned_blocks is None
    assert held(fleet)["a"] == ["2:5"]
    assert "pinned to" not in fleet.state.workers[A].assignment.reason


def test_a_move_lets_go_only_once_the_other_serves_the_blocks() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.wait(3)
    fleet.all_ready()
    assert held(fleet)["a"] == ["0:8"]
    fleet.join("b", pinned_blocks=BlockRange(0, 1))
    fleet.wait(3)
    fleet.all_ready()
    wished = pin(0, 3, takes_from=A, taken=BlockRange(0, 3))
    fleet.do(AssignmentPinned(worker_id=B, pin=wished))
    fleet.wait(5)
    assert held(fleet) == {"a": ["0:8"], "b": ["0:3"]}, "b is loading still"
    fleet.all_ready()
    fleet.wait(3)
    assert held(fleet) == {"a": ["3:8"], "b": ["0:3"]}
    assert fleet.state.pins == {B: pin(0, 3)}, "it is over, and b stays pinned"


def test_a_move_that_a_restart_interrupts_goes_on() -> None:
    fleet = served_fleet("a")
    fleet.join("b", pinned_blocks=BlockRange(0, 1))
    fleet.wait(3)
    fleet.do(AssignmentPinned(worker_id=B, pin=pin(0, 3, takes_from=A, taken=BlockRange(0, 3))))
    fleet.wait(3)
    workers = fleet.state.workers
    rows = tuple(
        StoredWorker(
            worker_id=w,
            status="present",
            hostname="",
            url="",
            device=r.device,
            seen_s=fleet.now_s,
            epoch=r.assignment.epoch,
            spans=r.assignment.spans,
        )
        for w, r in workers.items()
    )
    stored = StoredState(workers=rows, models=tuple(fleet.state.models.values()), pins=fleet.state.pins)
    again = Fleet(restored(stored, fleet.state.settings, fleet.now_s), fleet.now_s)
    for name in ("a", "b"):
        again.join(name)
    again.wait(3)
    again.all_ready()
    again.wait(3)
    assert held(again) == {"a": ["3:8"], "b": ["0:3"]}


def test_a_giver_that_is_pinned_is_pinned_to_what_is_left() -> None:
    fleet = served_fleet("a", memory=10**9)
    fleet.do(AssignmentPinned(worker_id=A, pin=pin(0, 8)))
    fleet.join("b", pinned_blocks=BlockRange(5, 8))
    fleet.wait(3)
    fleet.all_ready()
    fleet.do(AssignmentPinned(worker_id=B, pin=pin(5, 8, takes_from=A, taken=BlockRange(5, 8))))
    fleet.wait(3)
    assert fleet.state.pins[A].blocks == BlockRange(0, 5)
    assert held(fleet) == {"a": ["0:5"], "b": ["5:8"]}


def test_a_giver_that_can_do_only_one_after_the_other_gives_up_only_if_that_is_forced() -> None:
    fleet = served_fleet("a")
    fleet.join("b", pinned_blocks=BlockRange(5, 8))
    fleet.wait(3)
    fleet.all_ready()
    wished = pin(5, 8, takes_from=A, taken=BlockRange(5, 8))
    assert (
        "too little memory"
        in consequences(fleet.state, fleet.state.workers[B], fleet.state.models[M], wished).loses
    )
    fleet.do(AssignmentPinned(worker_id=B, pin=wished))
    fleet.wait(5)
    assert held(fleet)["a"] == ["0:8"]
    fleet.do(AssignmentPinned(worker_id=B, pin=replace(wished, is_forced=True)))
    fleet.wait(5)
    assert held(fleet)["a"] == ["0:5"]


@given(start=st.integers(0, 7), n=st.integers(1, 8))
def test_a_giver_is_left_with_one_range_that_is_what_wasnt_taken(start: int, n: int) -> None:
    fleet = served_fleet("a")
    taken = BlockRange(start, min(8, start + n))
    left = spans_without(fleet.state, fleet.state.workers[A], M, taken)
    rest = set(range(8)) - set(range(taken.start, taken.end))
    if left is None:
        assert taken.start > 0
        assert taken.end < 8
    else:
        assert {i for span in left for i in range(span.blocks.start, span.blocks.end)} == rest


def test_what_would_follow_is_said_with_numbers_and_why_not() -> None:
    fleet = served_fleet("a", "b", memory=memory_for(4, ends=1))
    state = fleet.state
    spans = {w: r.assignment.spans[0].blocks for w, r in state.workers.items()}
    assert sorted(map(str, spans.values())) == ["0:4", "4:8"]
    model, a = state.models[M], state.workers[A]
    too_much = consequences(state, a, model, pin(0, 8))
    assert "need" in too_much.refusal
    assert too_much.needed_bytes > too_much.capacity_bytes
    other = pin(4, 8) if spans[A] == BlockRange(0, 4) else pin(0, 4)
    swapped = consequences(state, a, model, other)
    assert swapped.refusal == ""
    assert swapped.loses
    assert swapped.changes[A][0].blocks == other.blocks
    assert swapped.now[M] is not None
    same = consequences(state, a, model, pin(spans[A].start, spans[A].end))
    assert (same.refusal, same.loses, dict(same.changes)) == ("", "", {})
    assert same.now == same.then


def test_impossible_moves_are_refused_with_what_is_held() -> None:
    fleet = served_fleet("a", "b")
    model, a, b = fleet.state.models[M], fleet.state.workers[A], fleet.state.workers[B]
    with pytest.raises(ConflictError, match="itself"):
        moved(fleet.state, model, BlockRange(0, 2), a, a)
    giver, taker = (a, b) if len(a.assignment.spans[0].blocks) >= len(b.assignment.spans[0].blocks) else (b, a)
    own = giver.assignment.spans[0].blocks
    with pytest.raises(ConflictError, match="at one end"):
        moved(fleet.state, model, BlockRange(own.start + 1, own.end - 1), giver, taker)


def test_settings_are_in_force_at_once_and_kept() -> None:
    fleet = served_fleet("a")
    fleet.wait(3)
    effects = fleet.do(SettingsChanged(stored={"replan_margin": 2.0}, in_force={"replan_margin": 2.0}, by="k1"))
    assert fleet.state.settings.replan_margin == 2.0
    assert dict(fleet.state.stored_settings) == {"replan_margin": 2.0}
    assert fleet.state.changed_s is None
    assert [e.details for e in effects if isinstance(e, WriteAudit)] == ["by k1: replan_margin 1.2 -> 2"]
    fleet.do(SettingsChanged(stored={"placement": None}, in_force={"placement": "one-stream"}, by="k1"))
    assert fleet.state.changed_s is not None, "placement is looked at anew"
    assert dict(fleet.state.stored_settings) == {"replan_margin": 2.0}


def test_a_worker_that_is_removed_has_no_pin_any_more() -> None:
    fleet = served_fleet("a", "b")
    fleet.do(AssignmentPinned(worker_id=A, pin=pin(2, 5)))
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(20)
    effects = fleet.do(WorkerRemoved(worker_id=A))
    assert DeletePin(worker_id=A) in effects
    assert A not in fleet.state.pins
    removed = next(e for e in effects if isinstance(e, WriteAudit) and e.action == "worker_removed")
    assert removed.before is not None
    assert removed.before["pin"] == "blocks 2:5 of m"


def test_what_a_forgotten_worker_is_pinned_to_can_be_ended() -> None:
    fleet = served_fleet("a", "b")
    fleet.do(AssignmentPinned(worker_id=A, pin=pin(2, 5)))
    fleet.do(SocketLost(worker_id=A))
    fleet.pass_time(2 * 3600)
    assert A not in fleet.state.workers
    effects = fleet.do(AssignmentUnpinned(worker_id=A, by="k2"))
    assert DeletePin(worker_id=A) in effects
    assert A not in fleet.state.pins
