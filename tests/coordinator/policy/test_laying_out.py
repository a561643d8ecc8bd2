from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.placement import cluster_of, placed_in, random_fleet, speed
from coordinator.policy.events import FilesChanged, WorkerBeat
from coordinator.policy.pipelines import rank
from coordinator.policy.state import ClusterState, Placement, PolicySettings
from protocol.ids import BlockRange, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, file_hash, heartbeat, memory_for


def planned() -> Fleet:
    return Fleet(ClusterState(settings=PolicySettings()))


def test_the_fastest_holds_it_all_alone_and_others_make_a_pipeline_beside_it() -> None:
    fleet = planned()
    fleet.do(added())
    fleet.join("a", memory=memory_for(8, ends=2))
    fleet.join("b", memory=memory_for(8, ends=2), speed=2.0)
    fleet.join("c", memory=memory_for(3, ends=1))
    fleet.wait(2)

    assert fleet.blocks() == {"a": "0:5", "b": "0:8", "c": "5:8"}


def test_who_is_first_and_who_is_last_is_settled_by_files_on_disk() -> None:
    fleet = planned()
    fleet.do(added())
    fleet.join("a", memory=memory_for(5, ends=1))
    fleet.join("b", memory=memory_for(5, ends=1))
    fleet.do(FilesChanged(worker_id=WorkerId("a"), files=tuple(file_hash(f"m-{i}") for i in range(4, 8))))
    fleet.wait(2)

    assert fleet.blocks() == {"a": "4:8", "b": "0:4"}


def test_workers_near_each_other_make_a_pipeline() -> None:
    fleet = planned()
    fleet.do(added())
    names = [WorkerId(name) for name in "abcd"]
    for name in names:
        fleet.join(name, memory=memory_for(5, ends=1))
        near = {"a": "c", "c": "a", "b": "d", "d": "b"}[name]
        trips = {other: 0.0001 if other == near else 0.5 for other in names if other != name}
        fleet.do(WorkerBeat(worker_id=name, heartbeat=heartbeat(round_trips_s=trips)))
    fleet.wait(2)

    blocks = fleet.blocks()
    assert {blocks["a"], blocks["c"]} == {"0:4", "4:8"} == {blocks["b"], blocks["d"]}


def test_with_two_models_neither_takes_the_room_of_the_other() -> None:
    fleet = planned()
    fleet.do(added())
    fleet.do(added("n", 8))
    fleet.join("a", memory=memory_for(8, ends=2))
    fleet.join("b", memory=memory_for(8, ends=2))
    fleet.wait(2)

    assert len(fleet.blocks("m")) == len(fleet.blocks("n")) == 1


def test_what_comes_later_moves_nothing() -> None:
    fleet = planned()
    fleet.do(added())
    fleet.join("a", memory=memory_for(5, ends=1))
    fleet.join("b", memory=memory_for(5, ends=1))
    fleet.wait(2)
    fleet.all_ready()
    before = fleet.blocks()
    fleet.join("c", memory=memory_for(8, ends=2), speed=50.0)
    fleet.wait(3)

    assert fleet.blocks() == {**before, "c": str(BlockRange(0, 8))}


def small_with_a_wide_head(placement: Placement) -> Fleet:
    """Two equal workers, neither with room for all 30 blocks; the head has the weights of eight."""
    fleet = Fleet(ClusterState(settings=PolicySettings(placement=placement)))
    fleet.do(added(n_blocks=30, end_parameters=8000))
    for name in "ab":
        fleet.join(name, memory=memory_for(38, ends=1))
    fleet.wait(2)
    return fleet


@pytest.mark.parametrize("placement", ["many-streams", "spread"])
def test_the_last_of_two_equal_workers_gets_fewer_blocks_for_the_head_that_it_runs(placement: Placement) -> None:
    fleet = small_with_a_wide_head(placement)

    assert sorted(fleet.blocks().values()) == ["0:17", "17:30"]


def test_who_has_the_files_of_the_head_stays_last_and_shares_are_made_anew_for_it() -> None:
    fleet = Fleet(ClusterState(settings=PolicySettings(placement="many-streams")))
    fleet.do(added(n_blocks=30, end_parameters=8000))
    for name in "ab":
        fleet.join(name, memory=memory_for(38, ends=1))
    last = tuple(file_hash(f"m-{i}") for i in range(20, 30))
    for name, files in (("a", last), ("b", ())):
        fleet.do(FilesChanged(worker_id=WorkerId(name), files=files))
    fleet.wait(2)

    assert fleet.blocks() == {"a": "17:30", "b": "0:17"}


@pytest.mark.parametrize("n_workers", [3, 5, 9])
def test_that_the_models_end_is_counted_makes_nothing_slower(n_workers: int) -> None:
    for seed in range(25):
        task = random_fleet(random.Random(seed), n_workers, 12)
        state = cluster_of(task)
        free = replace(state, settings=replace(state.settings, counts_head=False))
        counted, uncounted = (speed(task, placed_in(one, task)) for one in (state, free))
        if counted is not None and uncounted is not None:
            ours, others = (rank("balance", s.step_s, s.tokens_per_s)[0] for s in (counted, uncounted))
            assert ours <= others * (1 + 1e-9), seed
