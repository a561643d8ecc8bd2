"""More holders than one of each block: as many as a model wants, then whatever spares have room for."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.effects import SaveModel
from coordinator.policy.events import ModelAdded, ReplicasAsked, SocketLost, TimePassed, WorkerBeat
from coordinator.policy.placement import placement
from coordinator.policy.sizing import KV_TARGETS
from coordinator.policy.views import model_info
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, fits, heartbeat, memory_for

M = ModelName("m")


def wanting(n_replicas: int, *, n_blocks: int = 8, **options: object) -> ModelAdded:
    made = added(n_blocks=n_blocks, **options)
    return ModelAdded(name=made.name, revision=made.revision, manifest=made.manifest, n_replicas=n_replicas)


def fleet_wanting(n_replicas: int, *memories: int) -> Fleet:
    fleet = Fleet()
    fleet.do(wanting(n_replicas))
    for name, memory in zip("abcdefgh", memories, strict=False):
        fleet.join(name, memory=memory)
    settled(fleet)
    return fleet


def settled(fleet: Fleet) -> None:
    """Until everything is loaded and nothing more is given out."""
    for _ in range(4):
        fleet.wait(2)
        fleet.all_ready()


def n_holders(fleet: Fleet, model: str = "m") -> list[int]:
    info = model_info(fleet.state, ModelName(model), fleet.now_s)
    return [part.n_workers for part in info.coverage for _ in range(len(part.blocks))]


def test_a_pair_with_room_holds_two_replicas_by_growing() -> None:
    fleet = fleet_wanting(2, 10**9, 10**9)

    assert fleet.blocks() == {"a": "0:8", "b": "0:8"}
    assert model_info(fleet.state, M, fleet.now_s).reason == ""


def test_spares_are_used_before_anybody_grows() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.join("b")
    settled(fleet)
    fleet.join("c", memory=memory_for(8, ends=2))
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    settled(fleet)

    assert fleet.blocks() == {"a": "0:4", "b": "4:8", "c": "0:8"}


def test_several_spares_share_a_replica_that_none_can_hold() -> None:
    fleet = fleet_wanting(1, 10**9)
    fleet.join("b", memory=memory_for(5, ends=1))
    fleet.join("c", memory=memory_for(5, ends=1))
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    settled(fleet)

    assert fleet.blocks() == {"a": "0:8", "b": "0:4", "c": "4:8"}


def test_a_worker_with_another_model_takes_a_replica_before_anybody_grows() -> None:
    fleet = Fleet()
    fleet.do(added("n", 2))
    fleet.join("a")
    settled(fleet)
    fleet.do(added())
    settled(fleet)
    fleet.join("b", pinned_model=ModelName("n"), pinned_blocks=BlockRange(0, 1))
    fleet.join("c", memory=memory_for(3, ends=1))
    settled(fleet)
    fleet.join("d", memory=memory_for(12, ends=4))
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    settled(fleet)

    assert min(n_holders(fleet)) == 2
    assert fleet.blocks("m")["a"] == "0:8"
    assert "b" not in fleet.blocks("m")


def test_the_faster_of_two_grows_first_and_only_as_far_as_both_ranges_fit_for_a_while() -> None:
    fleet = Fleet()
    fleet.do(added(end_parameters=0))
    fleet.join("a", memory=memory_for(11), speed=1.01)
    fleet.join("b", memory=memory_for(10))
    fleet.wait(2)
    fleet.all_ready()
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    fleet.wait(1)
    grown = fleet.state.workers[WorkerId("a")].assignment
    assert str(grown.spans[0].blocks) == "0:7"
    assert [str(span.blocks) for span in grown.leaving] == ["0:4"]
    settled(fleet)

    assert fleet.blocks() == {"a": "0:7", "b": "2:8"}
    assert "blocks 0:2 have 1, blocks 7:8 have 1" in model_info(fleet.state, M, fleet.now_s).reason


def test_what_is_short_is_said_and_the_model_is_ready_all_the_same() -> None:
    fleet = fleet_wanting(3, 10**9, memory_for(4, ends=1))

    info = model_info(fleet.state, M, fleet.now_s)
    assert info.state == "ready"
    assert info.n_replicas == 3
    assert info.reason.startswith(
        "3 replicas of m wanted, blocks 0:4 have 1, blocks 4:8 have 2: no other worker has"
    )
    assert "`coord model replicas m N`" in info.reason


def test_what_is_short_for_now_is_said_to_come() -> None:
    fleet = fleet_wanting(1, 10**9, 10**9)
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    assert "once nothing has changed for 1 s" in model_info(fleet.state, M, fleet.now_s).reason

    fleet.wait(1)
    assert "are being loaded" in model_info(fleet.state, M, fleet.now_s).reason


def test_many_short_runs_are_summed_up() -> None:
    fleet = Fleet()
    fleet.do(wanting(2, n_blocks=10))
    fleet.join("all", memory=memory_for(10, ends=2))
    settled(fleet)
    for i in range(5):
        fleet.join(f"w{i}", pinned_blocks=BlockRange(2 * i, 2 * i + 1), memory=10)
    settled(fleet)

    assert "and 1 more such runs" in model_info(fleet.state, M, fleet.now_s).reason


def test_asking_for_replicas_saves_them_and_asking_again_or_of_no_model_changes_nothing() -> None:
    fleet = fleet_wanting(1, 10**9)

    saved = [effect for effect in fleet.do(ReplicasAsked(name=M, n_replicas=2)) if isinstance(effect, SaveModel)]
    assert [effect.n_replicas for effect in saved] == [2]
    assert fleet.do(ReplicasAsked(name=M, n_replicas=2)) == ()
    assert fleet.do(ReplicasAsked(name=ModelName("other"), n_replicas=2)) == ()


def test_with_fewer_replicas_wanted_nothing_is_taken_away() -> None:
    fleet = fleet_wanting(2, 10**9, 10**9)
    before = {worker_id: worker.assignment for worker_id, worker in fleet.state.workers.items()}
    fleet.do(ReplicasAsked(name=M, n_replicas=1))
    settled(fleet)

    assert {worker_id: worker.assignment for worker_id, worker in fleet.state.workers.items()} == before


def test_a_worker_that_dies_leaves_a_route_where_there_are_two_replicas() -> None:
    fleet = fleet_wanting(2, 10**9, 10**9)
    fleet.do(SocketLost(worker_id=WorkerId("a")))

    assert model_info(fleet.state, M, fleet.now_s).state == "ready"


memories = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), min_size=1, max_size=6)


@settings(max_examples=60)
@given(memories=memories, n_blocks=st.integers(1, 8), wanted=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_placement_comes_to_rest_and_nobody_holds_too_much(
    memories: list[tuple[int, int]], n_blocks: int, wanted: tuple[int, int]
) -> None:
    fleet = Fleet()
    fleet.do(wanting(wanted[0], n_blocks=n_blocks))
    other = added("n", 3)
    for name, (n, ends) in zip("abcdef", memories, strict=False):
        fleet.join(name, memory=memory_for(n, ends=ends))
    fleet.do(other)
    fleet.do(ReplicasAsked(name=ModelName("n"), n_replicas=wanted[1]))
    for _ in range(12):
        fleet.wait(2)
        fleet.all_ready()

    assert placement(fleet.state) == {}, "with nothing happening, nothing changes"
    for worker_id in fleet.state.workers:
        assert fits(fleet.state, worker_id, KV_TARGETS[-1])
    for _ in range(5):
        fleet.now_s += 1
        for worker_id in fleet.state.workers:
            fleet.do(WorkerBeat(worker_id=worker_id, heartbeat=heartbeat()))
        assert fleet.do(TimePassed()) == ()
