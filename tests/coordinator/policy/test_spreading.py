"""With `--placement spread`, blocks that several came to hold while others were away go back to one holder each."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.coverage import ready_counts
from coordinator.policy.events import ReplicasAsked, SocketLost, WorkerBeat, WorkerConnected
from coordinator.policy.improvement import improvement
from coordinator.policy.outlook import moving_words, outlook
from coordinator.policy.state import ClusterState
from protocol.ids import ModelName, WorkerId
from tests.coordinator.policy.fleet import SPREAD, Fleet, added, announce, heartbeat

QUICK = replace(SPREAD, replan_every_s=3.0)


def shared_by(workers: str) -> Fleet:
    fleet = Fleet(ClusterState(settings=QUICK))
    fleet.do(added())
    for name in workers:
        fleet.join(name)
    fleet.wait(2)
    fleet.all_ready()
    return fleet


def settle(fleet: Fleet, seconds: int = 30) -> None:
    """Let time pass; whoever loads is ready a second later. No block may be without somebody who serves it."""
    for _ in range(seconds):
        fleet.wait(1)
        fleet.all_ready()
        assert (
            min(n for m in fleet.state.models.values() for n in ready_counts(fleet.state.workers.values(), m)) > 0
        )


def away_for_a_moment(fleet: Fleet, worker: str) -> None:
    """As in a hang of the machine: long enough for others to be given its blocks too."""
    worker_id = WorkerId(worker)
    fleet.do(SocketLost(worker_id=worker_id))
    for _ in range(4):
        fleet.wait(1)
        for other in fleet.state.workers.values():
            if other.is_connected:
                fleet.report(other.worker_id)
    epoch = fleet.state.workers[worker_id].assignment.epoch
    fleet.do(WorkerConnected(worker_id=worker_id, announce=announce(worker, epoch=epoch)))
    fleet.all_ready()


def held_indices(fleet: Fleet) -> dict[WorkerId, set[int]]:
    return {
        w.worker_id: {i for s in w.assignment.spans for i in range(s.blocks.start, s.blocks.end)}
        for w in fleet.state.workers.values()
    }


def n_held(fleet: Fleet) -> int:
    return sum(len(s.blocks) for worker in fleet.state.workers.values() for s in worker.assignment.spans)


def test_blocks_that_were_given_out_twice_while_workers_were_away_go_back_to_one_holder_each() -> None:
    fleet = shared_by("abc")
    assert n_held(fleet) == 8
    for name in "abc":
        away_for_a_moment(fleet, name)
    assert n_held(fleet) > 8
    before = held_indices(fleet)
    fleet.wait(2)
    assert "Blocks are moved in" in outlook(fleet.state, fleet.now_s)
    assert "its workers hold 8 blocks in all instead of" in improvement(fleet.state).reason

    settle(fleet)
    assert sorted(fleet.blocks()) == ["a", "b", "c"]
    assert n_held(fleet) == 8
    assert all(after <= before[w] for w, after in held_indices(fleet).items())  # nobody loads anything for it
    assert moving_words(fleet.state) == ""
    assert outlook(fleet.state, fleet.now_s) == "Nothing is moved: gain 0 %, which is under 20 %"


def test_a_newcomer_takes_a_share_instead_of_everything_again() -> None:
    fleet = shared_by("abc")
    fleet.join("d")
    settle(fleet)
    assert sorted(len(s.blocks) for w in fleet.state.workers.values() for s in w.assignment.spans) == [2, 2, 2, 2]


def test_shares_that_are_only_uneven_are_moved_once_somebody_is_measured_to_be_slow() -> None:
    fleet = shared_by("abc")
    for name, block_s in {"a": 0.010, "b": 0.001, "c": 0.001}.items():
        fleet.do(WorkerBeat(worker_id=WorkerId(name), heartbeat=heartbeat(decode_s_per_block=block_s)))
    fleet.wait(2)
    found = improvement(fleet.state)
    assert found.is_worth_it
    assert "tokens/s for one stream instead of" in found.reason
    settle(fleet, 60)
    sizes = {w.worker_id: sum(len(s.blocks) for s in w.assignment.spans) for w in fleet.state.workers.values()}
    assert (sizes["a"], n_held(fleet)) == (1, 8), "and nothing is held twice"
    epochs = [worker.assignment.epoch for worker in fleet.state.workers.values()]
    settle(fleet, 60)
    assert [worker.assignment.epoch for worker in fleet.state.workers.values()] == epochs


def test_replicas_that_are_wanted_stay() -> None:
    fleet = shared_by("abc")
    fleet.do(ReplicasAsked(name=ModelName("m"), n_replicas=2))
    fleet.join("d")
    settle(fleet)
    assert n_held(fleet) == 16


@settings(max_examples=12)
@given(st.lists(st.sampled_from("abc"), max_size=5))
def test_whoever_was_away_nothing_is_held_twice_in_the_end_and_then_nobody_moves(away: list[str]) -> None:
    fleet = shared_by("abc")
    for name in away:
        away_for_a_moment(fleet, name)
    settle(fleet)
    assert n_held(fleet) == 8
    epochs = [worker.assignment.epoch for worker in fleet.state.workers.values()]
    settle(fleet, 60)
    assert [worker.assignment.epoch for worker in fleet.state.workers.values()] == epochs
