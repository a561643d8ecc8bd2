"""THREATS.md 25: many identities, shedding a bad history, slander, slow poisoning; and uptime earns nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.cluster import Cluster
from coordinator.database import opened
from coordinator.policy.events import SocketLost, TimePassed, WorkerBeat, WorkerConnected, WorkerJoined, WorkerLeft
from coordinator.policy.evidence_weights import DAY_S
from coordinator.policy.state import PolicySettings
from coordinator.policy.trust import Standing
from coordinator.repository import Repository
from coordinator.trust_reports import TrustReports
from protocol.ids import FileHash, KeyId, SessionId, WorkerId
from protocol.rest import HopFailure
from tests.coordinator.policy.fleet import announce, heartbeat

VICTIM = WorkerId("victim")


class Game:
    """A cluster, and what is told of its workers; every telling is a moment of its own."""

    def __init__(self, repository: Repository) -> None:
        self.now_s = 1_800_000_000.0
        self.cluster = Cluster(repository, PolicySettings(), lambda: self.now_s)
        self.reports = TrustReports(self.cluster)
        self.n_sessions = 0

    async def join(self, worker_id: WorkerId) -> None:
        await self.cluster.handle(WorkerJoined(worker_id=worker_id))
        await self.cluster.handle(WorkerConnected(worker_id=worker_id, announce=announce(worker_id)))

    async def blame(self, key: str, worker_id: WorkerId = VICTIM, n_times: int = 1) -> None:
        for _ in range(n_times):
            self.n_sessions += 1
            failure = HopFailure(worker_id=worker_id, code="protocol_error")
            self.reports.take_failure(SessionId(f"s{self.n_sessions}"), KeyId(key), [worker_id], failure)
            await self.reports.hand_in()

    async def work(self, key: str, worker_id: WorkerId = VICTIM, n_times: int = 20) -> None:
        for _ in range(n_times):
            self.reports.take_finished(KeyId(key), [worker_id], "stop")
        await self.reports.hand_in()

    def trust(self, worker_id: WorkerId = VICTIM) -> Standing:
        return self.cluster.state.workers[worker_id].trust


@pytest.fixture
async def game(tmp_path: Path) -> AsyncIterator[Game]:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        game = Game(Repository(engine))
        await game.cluster.restore()
        await game.join(VICTIM)
        yield game


async def test_one_slanderer_quarantines_nobody(game: Game) -> None:
    await game.blame("slanderer", n_times=60)
    assert game.trust().level == "weak"
    assert game.trust().score >= 0.25
    await game.work("honest")
    assert game.trust().level == "trusted"


async def test_many_new_identities_are_not_heard(game: Game) -> None:
    for i in range(20):
        await game.join(WorkerId(f"sybil-{i}"))
        game.reports.take_bad_source(VICTIM, WorkerId(f"sybil-{i}"), FileHash("f" * 64))
    await game.reports.hand_in()
    assert game.trust() == Standing()


async def test_a_bad_history_is_not_shed_by_leaving(game: Game) -> None:
    for key in ("a", "b"):
        await game.blame(key, n_times=6)
    before = game.trust()
    assert before.level == "quarantined"
    await game.cluster.handle(WorkerLeft(worker_id=VICTIM, reason="to begin anew"))
    await game.cluster.handle(SocketLost(worker_id=VICTIM))
    for _ in range(10):
        game.now_s += 2.0
        await game.cluster.handle(TimePassed())
    assert game.cluster.state.workers[VICTIM].presence == "gone"
    await game.join(VICTIM)
    assert game.trust().level == "quarantined"
    assert game.trust().score == pytest.approx(before.score, abs=0.001)
    await game.join(WorkerId("anew"))
    assert game.trust(WorkerId("anew")) == Standing()


async def test_uptime_earns_nothing(game: Game) -> None:
    for _ in range(30):
        game.now_s += DAY_S
        await game.cluster.handle(WorkerBeat(worker_id=VICTIM, heartbeat=heartbeat()))
        await game.cluster.handle(TimePassed())
    assert game.trust() == Standing()


async def test_a_long_good_record_does_not_outweigh_what_all_see_now(game: Game) -> None:
    keys = ("a", "b", "c")
    for key in keys:
        await game.work(key, n_times=500)
    for _ in range(10):
        for key in keys:
            await game.blame(key)
    assert game.trust().level == "quarantined"
