from __future__ import annotations

from coordinator.policy.events import WorkerBeat
from coordinator.policy.links import LINK_S, links_among, measured_links
from protocol.ids import WorkerId
from tests.coordinator.policy.fleet import Fleet, heartbeat


def test_a_link_is_taken_from_either_end_and_what_cant_be_isnt() -> None:
    fleet = Fleet()
    for name in "abc":
        fleet.join(name)
    trips = {"b": 0.02, "c": float("nan"), "gone": 0.1}
    fleet.do(WorkerBeat(worker_id=WorkerId("a"), heartbeat=heartbeat(round_trips_s=trips)))
    workers = [fleet.state.workers[WorkerId(name)] for name in "abc"]

    assert measured_links(workers[0]) == {"b": 0.01}, "who isn't known isn't kept"
    links = links_among(workers)
    assert (links[0][1], links[1][0]) == (0.01, 0.01)
    assert (links[0][2], links[2][1]) == (LINK_S, LINK_S)

    fleet.do(WorkerBeat(worker_id=WorkerId("b"), heartbeat=heartbeat(round_trips_s={"a": 0.06})))
    links = links_among([fleet.state.workers[WorkerId(name)] for name in "abc"])
    assert (links[0][1], links[1][0]) == (0.01, 0.03), "each direction as it was measured from there"
