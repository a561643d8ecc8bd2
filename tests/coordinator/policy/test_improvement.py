from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.coverage import ready_counts
from coordinator.policy.effects import SaveMoveAsked, WriteAudit
from coordinator.policy.events import ImprovementFound, ReplicasAsked, SocketLost, TimePassed, WorkerBeat
from coordinator.policy.improvement import improvement
from coordinator.policy.layouts import Layout
from coordinator.policy.looking import sought
from coordinator.policy.moving import reachable
from coordinator.policy.outlook import moving_words, outlook
from coordinator.policy.state import ClusterState, Placement, PolicySettings, Replan
from coordinator.policy.transition import apply
from protocol.ids import ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, heartbeat, memory_for

MARGIN = PolicySettings().replan_margin


def planned(placement: Placement = "balance", *, replan: Replan = "auto", margin: float = MARGIN) -> Fleet:
    wanted = PolicySettings(placement=placement, replan=replan, replan_margin=margin, replan_every_s=3.0)
    return Fleet(ClusterState(settings=wanted))


def settle(fleet: Fleet, seconds: int = 40, rng: random.Random | None = None) -> int:
    """Let time pass; those who load are ready in any order, now and then. How many workers were told to change."""
    rng, n_told = rng or random.Random(0), 0
    for _ in range(seconds):
        before = coverage(fleet)
        epochs = {w.worker_id: w.assignment.epoch for w in fleet.state.workers.values()}
        fleet.wait(1)
        n_told += sum(w.assignment.epoch > epochs[w.worker_id] for w in fleet.state.workers.values())
        unready = [w.worker_id for w in fleet.state.workers.values() if len(w.ready) < len(w.assignment.spans)]
        for worker_id in rng.sample(unready, min(len(unready), rng.randint(1, 3))):
            fleet.report(worker_id)
            assert all(n > 0 or not was for n, was in zip(coverage(fleet), before, strict=True)), "a block was lost"
    return n_told


def coverage(fleet: Fleet) -> list[int]:
    return [n for m in fleet.state.models.values() for n in ready_counts(fleet.state.workers.values(), m)]


def fast_newcomer(end_parameters: int = 0, **options: object) -> Fleet:
    """a and b share the model; c came later, is ten times as fast, and holds what was left for it: a replica."""
    fleet = planned(**options)  # type: ignore[arg-type]
    fleet.do(added(end_parameters=end_parameters))
    for name in "ab":
        fleet.join(name, memory=memory_for(7, ends=2))
    settle(fleet, 2)
    fleet.join("c", memory=memory_for(7, ends=2), speed=10.0)
    fleet.wait(1)
    fleet.all_ready()
    fleet.wait(1)
    assert fleet.blocks() == {"a": "0:4", "b": "4:8", "c": "0:7"}
    return fleet


def test_a_fast_worker_that_came_later_changes_what_the_others_hold() -> None:
    fleet = fast_newcomer()
    fleet.wait(1)
    assert fleet.state.moving is None, "not before nothing has changed for a while"
    assert "Blocks are moved in 2 s" in outlook(fleet.state, fleet.now_s)
    fleet.wait(2)
    assert "Placed anew, 0 of 1 workers done: gain 124 %" in moving_words(fleet.state)
    assert "now a to 7:8 of m" in moving_words(fleet.state)
    assert "placed anew" in fleet.state.workers[WorkerId("a")].assignment.reason
    assert fleet.state.workers[WorkerId("a")].assignment.leaving, "it serves until the other is ready"

    settle(fleet)
    assert fleet.blocks() == {"a": "7:8", "b": "4:8", "c": "0:7"}
    assert moving_words(fleet.state) == ""


def test_a_move_that_is_done_but_for_somebody_who_takes_no_part_says_for_whom_it_waits() -> None:
    fleet = fast_newcomer()
    fleet.wait(3)
    fleet.report("a")
    assert moving_words(fleet.state).endswith("; it ends in a moment")
    fleet.do(SocketLost(worker_id=WorkerId("b")))
    words = moving_words(fleet.state)
    assert "Placed anew, 1 of 1 workers done" in words
    assert words.endswith(
        "; it ends once all who hold blocks have them ready, and waits for b (host-b), which was stopped or isn't "
        "heard of"
    )


def test_where_the_best_cant_be_reached_a_slower_one_that_can_is_moved_to() -> None:
    """c is full: it could run the head as well, but not hold other blocks beside those that it serves."""
    fleet = fast_newcomer(end_parameters=400)
    settle(fleet)
    assert fleet.blocks() == {"a": "7:8", "b": "4:8", "c": "0:7"}


def test_in_a_large_fleet_no_second_plan_is_made_unless_an_operator_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = fast_newcomer(end_parameters=400)
    assert improvement(fleet.state).is_worth_it
    monkeypatch.setattr("coordinator.policy.improvement.MAX_PLANNED_AGAIN", 3 * 8 - 1)
    found = improvement(fleet.state)
    assert not found.is_worth_it
    assert found.gain >= MARGIN
    assert "more memory (--memory) or another worker helps" in found.reason
    assert improvement(fleet.state, is_asked=True).is_worth_it


def test_somebody_who_joins_ends_a_move_and_it_is_decided_again() -> None:
    fleet = fast_newcomer()
    fleet.wait(3)
    assert fleet.state.moving is not None
    fleet.join("d", memory=memory_for(7, ends=2))
    assert fleet.state.moving is None
    settle(fleet)
    assert not improvement(fleet.state).is_worth_it
    assert set(fleet.blocks()) == set("abcd")


def test_time_alone_moves_nobody_so_that_silence_is_noticed_while_nothing_can_be_saved() -> None:
    fleet = fast_newcomer()
    fleet.wait(3)
    fleet.report("a")
    assert sought(fleet.state, fleet.now_s) == "next step"
    after, effects = apply(fleet.state, TimePassed(), fleet.now_s + 1)
    assert (after.moving, effects) == (fleet.state.moving, ())


def test_a_move_that_was_ended_isnt_begun_again_at_once() -> None:
    fleet = fast_newcomer()
    fleet.wait(3)
    assert fleet.state.moving is not None
    fleet.do(SocketLost(worker_id=WorkerId("b")))
    fleet.wait(3)
    assert fleet.state.moving is None, "b has been away for a moment"
    assert fleet.state.improve_s is not None
    assert fleet.state.improve_s > fleet.now_s


def test_who_fails_to_load_ends_a_move_and_all_stays_served() -> None:
    fleet = fast_newcomer()
    fleet.wait(3)
    fleet.report("a", "failed", "the disk is full")
    assert fleet.state.moving is None
    fleet.wait(20)
    assert fleet.state.moving is None, "not while somebody has failed"
    assert min(coverage(fleet)) > 0


def test_off_moves_nothing_by_itself_and_says_what_would() -> None:
    fleet = fast_newcomer(replan="off")
    assert settle(fleet, 20) == 0
    assert "coord plan --apply" in outlook(fleet.state, fleet.now_s)


def test_a_gain_under_the_margin_is_taken_only_if_asked_for() -> None:
    fleet = fast_newcomer(margin=3.0)
    assert settle(fleet, 20) == 0
    assert outlook(fleet.state, fleet.now_s) == "Nothing is moved: gain 114 %, which is under 200 %"
    assert improvement(fleet.state, is_asked=True).is_worth_it


def test_where_nothing_fits_beside_what_is_served_nothing_moves_and_it_says_so() -> None:
    fleet = planned()
    fleet.do(added(end_parameters=0))
    for name in "ab":
        fleet.join(name, memory=memory_for(7, ends=2))
    settle(fleet, 2)
    for name, seconds in (("a", 0.001), ("b", 0.01)):
        fleet.do(WorkerBeat(worker_id=WorkerId(name), heartbeat=heartbeat(decode_s_per_block=seconds)))
    assert settle(fleet, 20) == 0
    assert "too little memory to hold what they serve beside" in outlook(fleet.state, fleet.now_s)


def test_replicas_that_nobody_needs_any_more_make_way_for_another_model() -> None:
    fleet = planned()
    fleet.do(replace(added(), n_replicas=2))
    for name in "ab":
        fleet.join(name, memory=memory_for(9, ends=2))
    settle(fleet, 2)
    fleet.do(ReplicasAsked(name=ModelName("m"), n_replicas=1))
    fleet.do(added("n"))
    settle(fleet)
    assert (fleet.blocks("m"), fleet.blocks("n")) == ({"a": "0:8"}, {"b": "0:8"})


@pytest.mark.parametrize("seed", [46, 82, *range(6)])
def test_what_is_moved_to_can_be_reached_and_keeps_the_replicas_that_are_wanted(seed: int) -> None:
    rng = random.Random(seed)
    fleet = planned(rng.choice(["balance", "one-stream", "many-streams"]), replan="off")
    fleet.do(replace(added(), n_replicas=rng.choice([1, 2, 2, 3])))
    if rng.random() < 0.3:
        fleet.do(added("n"))
    workers = [f"w{i}" for i in range(rng.randint(2, 8))]
    for name in workers:
        fleet.join(name, memory=memory_for(rng.choice([3, 6, 9, 20]), ends=2), speed=rng.uniform(0.2, 3.0))
        if rng.random() < 0.3:
            settle(fleet, 3, rng)
    settle(fleet, 15, rng)
    for name in workers:
        beat = heartbeat(decode_s_per_block=10 ** rng.uniform(-4, -2))
        fleet.do(WorkerBeat(worker_id=WorkerId(name), heartbeat=beat))
    found = improvement(fleet.state)
    now = Layout.of(fleet.state, {w.worker_id: w.assignment.spans for w in fleet.state.workers.values()})

    assert reachable(fleet.state, found.moves) == found.moves
    assert now.changed(found.moves).keeps_replicas(now)


@pytest.mark.parametrize("placement", ["balance", "one-stream", "many-streams", "spread"])
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_after_a_move_nothing_is_worth_another_and_no_block_is_ever_lost(placement: Placement, seed: int) -> None:
    rng = random.Random(seed)
    fleet = planned(placement)
    fleet.do(added())
    n_workers = rng.randint(2, 9)
    for i in range(n_workers):
        fleet.join(f"w{i}", memory=memory_for(rng.choice([3, 6, 9, 20]), ends=2), speed=rng.uniform(0.2, 3.0))
        if rng.random() < 0.3:
            settle(fleet, 3, rng)
    settle(fleet, 20, rng)
    for i in range(n_workers):
        others = {f"w{k}": 10 ** rng.uniform(-4, -1) for k in range(n_workers) if k != i and rng.random() < 0.5}
        beat = heartbeat(decode_s_per_block=10 ** rng.uniform(-4, -2), round_trips_s=others)
        fleet.do(WorkerBeat(worker_id=WorkerId(f"w{i}"), heartbeat=beat))
    settle(fleet, 80, rng)
    assert fleet.state.moving is None
    found = improvement(fleet.state)

    assert not found.is_worth_it, found
    assert found.gain < MARGIN or "too little memory" in found.reason, found
    assert settle(fleet, 10, rng) == 0


def test_a_move_that_an_operator_asked_for_goes_on_after_a_restart() -> None:
    fleet = fast_newcomer(replan="off")
    before = fleet.blocks()
    better = improvement(fleet.state, is_asked=True)
    effects = fleet.do(ImprovementFound(basis=fleet.state, improvement=better, is_asked=True))
    assert SaveMoveAsked(is_asked=True) in effects
    (line,) = [effect for effect in effects if isinstance(effect, WriteAudit) and effect.action == "replanned"]
    assert line.before is not None
    assert line.after is not None
    assert line.before.keys() == line.after.keys() == {str(worker_id) for worker_id in better.moves}
    assert line.before != line.after
    again = fast_newcomer(replan="off")
    again.state = replace(again.state, is_move_asked=True)  # as `restored` has it
    settle(again)
    assert again.blocks() != before
    assert (again.state.moving, again.state.is_move_asked) == (None, False)
    assert settle(again, 10) == 0


def test_what_was_found_holds_though_workers_measured_anew_meanwhile() -> None:
    fleet = fast_newcomer(replan="off")
    basis, better = fleet.state, improvement(fleet.state, is_asked=True)
    for name in "abc":
        beat = heartbeat(decode_s_per_block=0.0123)
        fleet.do(WorkerBeat(worker_id=WorkerId(name), heartbeat=beat))
    fleet.do(ImprovementFound(basis=basis, improvement=better, is_asked=True))

    assert fleet.state.moving is not None
