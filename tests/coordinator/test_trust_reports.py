"""What is told of workers becomes evidence: once a session, once a moment, and never lost to a database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from coordinator.cluster import Cluster
from coordinator.database import opened
from coordinator.policy.events import Event, WorkerJoined
from coordinator.policy.state import PolicySettings
from coordinator.policy.trust import repeated
from coordinator.policy.trust_events import EvidenceSeen
from coordinator.repository import Repository
from coordinator.trust_reports import MAX_AT_ONCE, TrustReports
from protocol.ids import FileHash, KeyId, SessionId, WorkerId
from protocol.rest import STALLED, HopFailure

A, B, C = WorkerId("w-a"), WorkerId("w-b"), WorkerId("w-c")
KEY = KeyId("k")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        yield engine


@pytest.fixture
async def cluster(engine: AsyncEngine) -> Cluster:
    cluster = Cluster(Repository(engine), PolicySettings(), lambda: 1_800_000_000.0)
    await cluster.restore()
    for worker_id in (A, B, C):
        await cluster.handle(WorkerJoined(worker_id=worker_id))
    return cluster


def failed(worker_id: WorkerId | None, code: str = "hop_lost") -> HopFailure:
    return HopFailure(worker_id=worker_id, code=code)


def said_of(cluster: Cluster, worker_id: WorkerId) -> dict[str, float]:
    record = cluster.state.trust.get(worker_id)
    return {} if record is None else {f"{o.reporter} {o.kind}": o.mass for o in record.opinions}


async def test_a_machine_that_goes_down_with_many_sessions_has_failed_once(cluster: Cluster) -> None:
    reports = TrustReports(cluster)
    for number in range(20):
        reports.take_failure(SessionId(f"s{number}"), KEY, [A, B], failed(B))
        reports.take_failure(SessionId(f"s{number}"), KEY, [A, B], failed(B))
    await reports.hand_in()
    assert said_of(cluster, B) == {"key:k hop_failed": 1.0}
    reports.take_failure(SessionId("s0"), KEY, [A, B], failed(B))
    await reports.hand_in()
    assert said_of(cluster, B) == {"key:k hop_failed": 1.0}, "the same session again"
    assert said_of(cluster, A) == {}


@pytest.mark.parametrize("failure", [failed(C), failed(None), failed(B, "draining"), failed(B, "no such code")])
async def test_what_is_no_workers_fault_of_the_route_counts_for_nobody(
    cluster: Cluster, failure: HopFailure
) -> None:
    reports = TrustReports(cluster)
    reports.take_failure(SessionId("s1"), KEY, [A, B], failure)
    await reports.hand_in()
    assert cluster.state.trust == {}


async def test_a_stall_counts_in_parts_and_other_failures_by_their_kind(cluster: Cluster) -> None:
    reports = TrustReports(cluster)
    reports.take_failure(SessionId("s1"), KEY, [A, B], failed(None, STALLED))
    reports.take_failure(SessionId("s2"), KeyId("other"), [A, B], failed(A, "protocol_error"))
    await reports.hand_in()
    assert said_of(cluster, A) == {"key:k stalled": 0.5, "key:other wrong_data": 1.0}
    assert said_of(cluster, B) == {"key:k stalled": 0.5}


async def test_work_speaks_for_all_of_the_route_as_often_as_it_was_done(cluster: Cluster) -> None:
    reports = TrustReports(cluster)
    for _ in range(11):
        reports.take_finished(KEY, [A, B], "stop")
    reports.take_finished(KEY, [C], "failed")
    reports.take_finished(KEY, [C], "cancelled")
    await reports.hand_in()
    assert {cluster.state.workers[w].trust.level for w in (A, B)} == {"trusted"}
    assert said_of(cluster, C) == {}
    reports.take_finished(KEY, [C, A], "deadline")
    reports.take_bad_source(C, B, FileHash("f" * 64))
    await reports.hand_in()
    assert said_of(cluster, C) == {f"worker:{A} deadline": 0.125, f"worker:{B} bad_bytes": 1.0}


async def test_a_database_that_is_away_loses_no_evidence(cluster: Cluster, engine: AsyncEngine) -> None:
    reports = TrustReports(cluster)
    reports.take_failure(SessionId("s1"), KEY, [A], failed(A))
    for _ in range(3):
        reports.take_finished(KEY, [C], "stop")
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE trust RENAME TO trust_away"))
    await reports.hand_in()
    assert cluster.state.trust == {}
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE trust_away RENAME TO trust"))
    reports.take_finished(KEY, [B, C], "stop")
    await reports.hand_in()
    assert said_of(cluster, A) == {"key:k hop_failed": 1.0}
    assert said_of(cluster, B) == {"key:k work": 0.5}
    assert said_of(cluster, C) == {"key:k work": repeated(0.5, "key:k", 4)}, "three times before, once after"


async def test_much_evidence_is_handed_in_by_short_transactions(cluster: Cluster) -> None:
    reports = TrustReports(cluster)
    n_said: list[int] = []
    handle = cluster.handle

    async def counted(event: Event) -> None:
        assert isinstance(event, EvidenceSeen)
        n_said.append(len(event.items))
        await handle(event)

    cluster.handle = counted  # type: ignore[method-assign]
    for number in range(MAX_AT_ONCE + 7):
        reports.take_finished(KeyId(f"k{number}"), [A], "stop")
    await reports.hand_in()
    assert n_said == [MAX_AT_ONCE, 7]
