from __future__ import annotations

import pytest

from coordinator.policy.events import DrainAsked, WorkerBeat
from coordinator.policy.missing import MissingBlocks
from coordinator.policy.routing import Avoided, Route, cheapest_route, wanted_blocks
from protocol.errors import InvalidRequestError
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, heartbeat

M = ModelName("m")


def two_of_each() -> Fleet:
    fleet = Fleet()
    fleet.do(added(n_blocks=4))
    for name in "abcd":
        start, end = (0, 2) if name in "ab" else (2, 4)
        fleet.join(name, pinned_blocks=BlockRange(start, end))
    fleet.wait(2)
    fleet.all_ready()
    return fleet


def hops(found: Route | MissingBlocks) -> list[tuple[str, str]]:
    assert isinstance(found, Route), found
    return [(hop.worker_id, str(hop.blocks)) for hop in found.hops]


def test_ties_are_settled_the_same_way_every_time() -> None:
    fleet = two_of_each()

    assert hops(cheapest_route(fleet.state, M)) == [("a", "0:2"), ("c", "2:4")]
    hop = cheapest_route(fleet.state, M)
    assert isinstance(hop, Route)
    assert hop.hops[0].url == "https://a:1"
    assert hop.hops[0].epoch == fleet.state.workers[WorkerId("a")].assignment.epoch


def test_busy_slow_far_and_excluded_workers_are_avoided() -> None:
    fleet = two_of_each()
    fleet.do(WorkerBeat(worker_id=WorkerId("a"), heartbeat=heartbeat(n_sessions=3)))
    fleet.do(WorkerBeat(worker_id=WorkerId("c"), heartbeat=heartbeat(decode_s_per_block=3.0)))
    assert hops(cheapest_route(fleet.state, M)) == [("b", "0:2"), ("d", "2:4")]

    far = heartbeat(round_trips_s={WorkerId("d"): 50.0, WorkerId("c"): float("nan")})
    fleet.do(WorkerBeat(worker_id=WorkerId("b"), heartbeat=far))
    assert [worker for worker, _ in hops(cheapest_route(fleet.state, M))] == ["b", "a", "d"], "not from b to d"
    assert hops(cheapest_route(fleet.state, M, frozenset({WorkerId("a")})))[1][0] == "c"
    assert hops(cheapest_route(fleet.state, M, frozenset({WorkerId("b")})))[0][0] == "a"


def test_what_is_to_be_avoided_is_used_where_there_is_no_other_way() -> None:
    fleet = two_of_each()
    a, b, c, d = (WorkerId(name) for name in "abcd")

    def avoiding(*workers: WorkerId, links: tuple[tuple[WorkerId, WorkerId], ...] = ()) -> Route:
        found = cheapest_route(fleet.state, M, avoided=Avoided(workers=frozenset(workers), links=frozenset(links)))
        assert isinstance(found, Route)
        return found

    assert hops(avoiding(a)) == [("b", "0:2"), ("c", "2:4")]
    assert hops(avoiding(a, b, c)) == [("a", "0:2"), ("d", "2:4")]
    assert hops(avoiding(a, b, c, d)) == hops(avoiding())
    assert hops(avoiding(links=((a, c),))) == [("a", "0:2"), ("d", "2:4")]
    assert hops(avoiding(links=((a, c), (a, d)))) == [("b", "0:2"), ("c", "2:4")]
    assert avoiding(a, b).cost_s == pytest.approx(avoiding().cost_s), "what it costs in trust is no time"


def test_suspect_and_draining_workers_get_no_sessions() -> None:
    fleet = two_of_each()
    fleet.wait(7, silent=("a",))
    fleet.do(DrainAsked(worker_id=WorkerId("c"), reason="test"))

    assert hops(cheapest_route(fleet.state, M)) == [("b", "0:2"), ("d", "2:4")]


def test_what_is_missing_is_said_with_its_reason() -> None:
    fleet = two_of_each()
    fleet.report("c", "loading", "60 MB/s")

    found = cheapest_route(fleet.state, M, frozenset({WorkerId("d"), WorkerId("a")}))
    assert isinstance(found, MissingBlocks)
    assert found.blocks == (BlockRange(2, 4),)
    assert found.is_on_its_way
    assert "blocks 2:4 of m are being loaded, 0% done: 60 MB/s" in found.message
    assert "which the request excludes" in found.message


def test_what_the_only_worker_has_failed_to_hold_is_not_on_its_way() -> None:
    fleet = two_of_each()
    fleet.report("c", "failed", "the disk is full")
    fleet.report("d", "loading")

    assert cheapest_route(fleet.state, M).is_on_its_way  # type: ignore[union-attr]
    fleet.report("d", "failed", "the disk is full")
    found = cheapest_route(fleet.state, M)
    assert isinstance(found, MissingBlocks)
    assert not found.is_on_its_way
    assert "the disk is full" in found.message


def test_an_unknown_model_has_no_route() -> None:
    found = cheapest_route(Fleet().state, ModelName("nope"))

    assert isinstance(found, MissingBlocks)
    assert "nope" in found.message


def test_a_private_route_covers_what_is_between_the_clients_ends_and_needs_nobody_for_them() -> None:
    fleet = two_of_each()
    record = fleet.state.models[M]
    assert wanted_blocks(record, None) is None
    found = cheapest_route(fleet.state, M, blocks=wanted_blocks(record, 1))
    assert hops(found) == [("a", "1:2"), ("c", "2:3")]
    with pytest.raises(InvalidRequestError, match=r"2 private blocks .* which has 4, .* at most 1"):
        wanted_blocks(record, 2)

    lone = Fleet()
    lone.do(added(n_blocks=4))
    lone.join("a", pinned_blocks=BlockRange(1, 3))
    lone.wait(2)
    lone.all_ready()
    assert isinstance(cheapest_route(lone.state, M), MissingBlocks)
    assert hops(cheapest_route(lone.state, M, blocks=BlockRange(1, 3))) == [("a", "1:3")]
    missing = cheapest_route(lone.state, M, frozenset({WorkerId("a")}), blocks=BlockRange(1, 3))
    assert isinstance(missing, MissingBlocks)
    unpinned = cheapest_route(lone.state, M, pinned_ends=True, blocks=BlockRange(1, 3))
    assert isinstance(unpinned, MissingBlocks)
