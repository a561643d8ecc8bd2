from __future__ import annotations

import pytest

from coordinator.policy.events import WorkerBeat
from coordinator.policy.prefixes import held_stages
from coordinator.policy.routing import Route, cheapest_route
from coordinator.policy.segments import ANSWER_TOKENS
from protocol.control_messages import Heartbeat
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, heartbeat

M = ModelName("m")
A, B = WorkerId("a"), WorkerId("b")
STAGES = [(B, 0, 4), (WorkerId("gone"), 0, 4)]


def busy(n_sessions: int, **changes: float) -> Heartbeat:
    return heartbeat(n_sessions=n_sessions, decode_s_per_block=0.01, **changes)


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet()
    fleet.do(added(n_blocks=4))
    for worker_id in (A, B):
        fleet.join(worker_id, pinned_blocks=BlockRange(0, 4))
    fleet.wait(2)
    fleet.all_ready()
    return fleet


def saved_s(
    fleet: Fleet, *, n_positions: int = 1000, max_tokens: int = 10
) -> dict[tuple[WorkerId, BlockRange], float]:
    manifest = fleet.state.models[M].manifest
    return dict(held_stages(fleet.state, manifest, STAGES, n_positions=n_positions, max_tokens=max_tokens))


def test_what_is_saved_is_the_prefill_as_the_worker_measured_it(fleet: Fleet) -> None:
    by_its_speed = saved_s(fleet)
    assert list(by_its_speed) == [(B, BlockRange(0, 4))]
    assert by_its_speed[B, BlockRange(0, 4)] > 0
    for measured, is_taken in ((0.002, True), (float("nan"), False), (1e9, False)):
        fleet.do(WorkerBeat(worker_id=B, heartbeat=busy(0, prefill_s_per_token_block=measured)))
        expected = {(B, BlockRange(0, 4)): 1000 * 4 * 0.002 / 10} if is_taken else by_its_speed
        assert saved_s(fleet) == pytest.approx(expected)
    assert saved_s(fleet, max_tokens=10**6) == saved_s(fleet, max_tokens=ANSWER_TOKENS)


@pytest.mark.parametrize(
    ("n_sessions", "n_positions", "chosen"), [(0, 10, B), (1, 1000, B), (1, 10, A), (200, 1000, A)]
)
def test_it_draws_a_route_until_the_wait_there_is_the_longer_one(
    fleet: Fleet, n_sessions: int, n_positions: int, chosen: WorkerId
) -> None:
    fleet.do(WorkerBeat(worker_id=A, heartbeat=busy(0)))
    fleet.do(WorkerBeat(worker_id=B, heartbeat=busy(n_sessions, prefill_s_per_token_block=0.001)))
    held = saved_s(fleet, n_positions=n_positions, max_tokens=ANSWER_TOKENS)
    route = cheapest_route(fleet.state, M, held=held)
    assert isinstance(route, Route)
    assert [hop.worker_id for hop in route.hops] == [chosen]
