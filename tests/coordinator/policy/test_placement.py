from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.policy.events import DrainAsked, ModelRemoved, SocketLost, WorkerBeat, WorkerConnected, WorkerLeft
from coordinator.policy.missing import missing_blocks
from coordinator.policy.placement import placement
from coordinator.policy.sizing import KV_TARGETS
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, fits, heartbeat, memory_for


def fleet_of(*speeds: float, n_blocks: int = 8, memory: int = 10**9) -> Fleet:
    fleet = Fleet()
    fleet.do(added(n_blocks=n_blocks))
    for name, speed in zip("abcdefgh", speeds, strict=False):
        fleet.join(name, speed=speed, memory=memory)
    fleet.wait(2)
    fleet.all_ready()
    return fleet


def test_workers_that_join_together_share_by_speed() -> None:
    assert fleet_of(1.0, 1.0, 2.0).blocks() == {"a": "0:2", "b": "2:4", "c": "4:8"}


def test_nothing_is_placed_before_the_cluster_has_settled() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.now_s += 0.9
    fleet.join("b")
    fleet.now_s += 0.9
    fleet.wait(0)
    assert fleet.blocks() == {}

    fleet.wait(1)
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}


def test_measured_speed_counts_before_the_estimate() -> None:
    fleet = Fleet()
    fleet.do(added())
    for name, seconds in (("a", 0.003), ("b", 0.001)):
        fleet.join(name)
        fleet.do(WorkerBeat(worker_id=WorkerId(name), heartbeat=heartbeat(decode_s_per_block=seconds)))
    fleet.wait(2)

    assert fleet.blocks() == {"a": "0:2", "b": "2:8"}


def test_nobody_is_given_more_than_fits() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a", memory=memory_for(2, ends=1), speed=100.0)
    fleet.join("b", memory=memory_for(3))
    fleet.join("c", memory=memory_for(3, ends=1), speed=100.0)
    fleet.wait(2)

    assert fleet.blocks() == {"a": "0:2", "b": "2:5", "c": "5:8"}


def test_who_has_room_for_an_end_of_the_model_is_put_there() -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=3, end_parameters=2500))
    fleet.join("a", memory=memory_for(1))
    fleet.join("b", memory=memory_for(1, ends=5))
    fleet.join("c", memory=memory_for(1, ends=5))
    fleet.wait(2)

    assert fleet.blocks() == {"a": "1:2", "b": "0:1", "c": "2:3"}


def test_a_fleet_that_is_too_small_holds_what_it_can_from_the_first_block_on() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a", memory=memory_for(3, ends=1))
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:3"}

    fleet.join("b", memory=memory_for(5, ends=1))
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:3", "b": "3:8"}


def test_a_late_worker_becomes_a_replica_and_nothing_moves() -> None:
    fleet = fleet_of(1.0, 1.0)
    fleet.join("late", memory=memory_for(5, ends=2))
    fleet.wait(3)
    assert fleet.blocks() == {"a": "0:4", "b": "4:8", "late": "0:5"}

    fleet.join("later", memory=memory_for(5, ends=2))
    fleet.wait(3)
    assert fleet.blocks()["later"] == "5:8"


def test_a_worker_that_can_hold_nothing_is_a_spare_and_says_so() -> None:
    fleet = fleet_of(1.0, 1.0)
    fleet.join("tiny", memory=100)
    fleet.wait(3)

    assert "spare" in fleet.idle_reason("tiny")
    assert "every block of every model is held" in fleet.idle_reason("tiny")


def test_without_a_model_a_worker_waits_for_one() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.wait(2)

    assert "coord model add" in fleet.idle_reason("a")


def test_the_blocks_of_a_lost_worker_go_to_its_neighbours() -> None:
    fleet = fleet_of(1.0, 1.0, 1.0, n_blocks=6)
    fleet.do(SocketLost(worker_id=WorkerId("b")))
    fleet.wait(18)
    assert fleet.blocks() == {"a": "0:3", "b": "2:4", "c": "3:6"}


def test_a_worker_whose_blocks_others_hold_too_moves_to_where_it_is_needed() -> None:
    fleet = fleet_of(1.0, 1.0, n_blocks=6, memory=memory_for(4, ends=1))
    fleet.join("spare", memory=memory_for(4, ends=2))
    fleet.wait(2)
    assert fleet.blocks()["spare"] == "0:4"
    fleet.all_ready()

    fleet.do(WorkerLeft(worker_id=WorkerId("b"), reason="stopped"))
    fleet.do(SocketLost(worker_id=WorkerId("b")))
    fleet.wait(18)
    assert fleet.blocks() == {"a": "4:6", "spare": "0:4"}


def test_a_draining_worker_is_replaced_before_it_goes() -> None:
    fleet = fleet_of(1.0, 1.0)
    fleet.do(DrainAsked(worker_id=WorkerId("b"), reason="maintenance"))
    fleet.wait(2)

    assert fleet.blocks() == {"a": "0:8", "b": "4:8"}


def test_a_worker_that_failed_is_replaced_and_not_asked_again() -> None:
    fleet = fleet_of(1.0, 1.0)
    fleet.report("b", "failed", "disk full")
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:8", "b": "4:8"}

    epoch = fleet.state.workers[WorkerId("a")].assignment.epoch
    fleet.all_ready()
    fleet.report("b", "failed", "disk full")
    fleet.wait(5)
    assert fleet.state.workers[WorkerId("a")].assignment.epoch == epoch


def test_a_layout_that_cant_be_mended_is_made_anew() -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=8, end_parameters=0))
    for name in "abcd":
        fleet.join(name, memory=memory_for(2, ends=1))
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:2", "b": "2:4", "c": "4:6", "d": "6:8"}

    fleet.do(WorkerLeft(worker_id=WorkerId("b"), reason="stopped"))
    fleet.do(SocketLost(worker_id=WorkerId("b")))
    fleet.wait(18)
    assert fleet.blocks() == {"a": "0:2", "c": "4:6", "d": "6:8"}

    # a grows no further, so 'a' has to stay and the rest to make room
    fleet.do(WorkerConnected(worker_id=WorkerId("d"), announce=announce("d", memory=memory_for(5, ends=1))))
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:2", "c": "2:4", "d": "4:8"}


def test_pinned_workers_get_exactly_their_blocks_and_the_rest_is_filled_around() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.join("b", pinned_blocks=BlockRange(2, 5), memory=10)
    fleet.join("c")
    fleet.wait(2)

    blocks = fleet.blocks()
    assert blocks["b"] == "2:5"
    assert sorted([blocks["a"], blocks["c"]]) == ["0:2", "5:8"]
    assert "--blocks" in fleet.idle_reason("b")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"pinned_model": ModelName("x"), "pinned_blocks": BlockRange(0, 2)},
            "blocks 0:2 of x, which isn't served",
        ),
        ({"pinned_blocks": BlockRange(4, 20)}, "m has 8"),
    ],
)
def test_a_pin_that_cant_be_met_is_explained(options: dict[str, object], words: str) -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a", **options)
    fleet.wait(2)

    assert fleet.blocks() == {}
    assert words in fleet.idle_reason("a")


def test_a_second_model_is_held_beside_the_first() -> None:
    fleet = fleet_of(1.0, 1.0)
    fleet.do(added("n", 4))
    fleet.wait(2)
    assert fleet.blocks("m") == {"a": "0:4", "b": "4:8"}
    assert fleet.blocks("n") == {"a": "0:2", "b": "2:4"}

    fleet.do(ModelRemoved(name=ModelName("m")))
    fleet.wait(2)
    assert fleet.blocks("m") == {}
    assert fleet.blocks("n") == {"a": "0:2", "b": "2:4"}


def test_workers_of_versions_without_encoders_are_given_none() -> None:
    fleet = Fleet()
    fleet.do(added(kind="encoder"))
    fleet.join("old", speed=100.0)
    fleet.wait(2)
    assert fleet.blocks() == {}
    assert "runs no encoders" in fleet.idle_reason("old")
    fleet.join("new", device={"runs_encoders": True})
    fleet.wait(2)
    assert fleet.blocks() == {"new": "0:8"}
    fleet.do(added("decoder"))
    fleet.wait(2)
    assert "old" in fleet.blocks("decoder")


def test_a_worker_started_for_one_model_is_given_blocks_of_no_other() -> None:
    fleet = Fleet()
    fleet.do(added("m", 4))
    fleet.do(added("n", 4))
    fleet.join("a", pinned_model=ModelName("n"), memory=memory_for(16, ends=4))
    fleet.wait(2)
    assert (fleet.blocks("m"), fleet.blocks("n")) == ({}, {"a": "0:4"})
    missing = missing_blocks(fleet.state, fleet.state.models[ModelName("m")])
    assert missing is not None
    assert "started for other models (--model)" in missing.message

    fleet.join("c", pinned_model=ModelName("n"), memory=memory_for(16, ends=4))  # of no use to m, so a replica of n
    fleet.wait(2)
    assert (fleet.blocks("m"), fleet.blocks("n")) == ({}, {"a": "0:4", "c": "0:4"})
    fleet.join("b", memory=memory_for(16, ends=4))
    fleet.wait(2)
    assert fleet.blocks("m") == {"b": "0:4"}
    fleet.join("b", pinned_model=ModelName("x"))  # started again, for a model that isn't there
    fleet.wait(2)
    assert (fleet.blocks("m"), fleet.blocks("n")) == ({}, {"a": "0:4", "c": "0:4"})
    assert "--model x, which isn't served" in fleet.idle_reason("b")


@settings(max_examples=150)
@given(
    memories=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=5),
    n_blocks=st.integers(1, 8),
    is_tied=st.booleans(),
)
@example(memories=[(1, 1), (1, 0), (1, 1)], n_blocks=2, is_tied=False)
def test_a_model_is_held_whole_if_there_is_room_and_nobody_holds_too_much(
    memories: list[tuple[int, int]], n_blocks: int, is_tied: bool
) -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=n_blocks, tied=is_tied))
    for name, (n, ends) in zip("abcde", memories, strict=False):
        fleet.join(name, memory=memory_for(n, ends=ends))
    fleet.wait(2)

    held = [span.blocks for w in fleet.state.workers.values() for span in w.assignment.spans]
    covered = {i for blocks in held for i in range(blocks.start, blocks.end)}
    assert all(fits(fleet.state, worker_id, KV_TARGETS[-1]) for worker_id in fleet.state.workers)
    # every worker could be first or last with two blocks less: a bound that any good placement meets
    if sum(max(0, n - 1) for n, _ in memories) >= n_blocks:
        assert covered == set(range(n_blocks))
    assert covered == set(range(len(covered))), "from the first block on, without holes"
    assert placement(fleet.state) == {}, "placing again changes nothing"
