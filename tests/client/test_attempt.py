from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from client.attempt import Attempt
from client.failover import AttemptFailed
from client.transport import ConnectionPool, connection_pool
from protocol.errors import ErrorBody, HopLostError, InternalError
from protocol.ids import BlockRange, ModelName, SessionId, WorkerId
from protocol.messages import SamplingParams
from protocol.rest import HopFailure, RouteGrant, RouteHop
from tests.support.scripted_cluster import Script, ScriptedCluster, SeenSession, scripted_cluster

SESSION = SessionId("s-1")
DEADLINE_S = 20.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with scripted_cluster(tmp_path) as running:
        running.seen[SESSION] = SeenSession()
        running.script = Script(answer=(4, 5, 6), finish="length")
        yield running


@pytest.fixture
async def pool(cluster: ScriptedCluster) -> AsyncIterator[ConnectionPool]:
    async with connection_pool(cluster.authority.ca_pem) as opened:
        yield opened


def grant_of(cluster: ScriptedCluster, workers: list[tuple[WorkerId, str]]) -> RouteGrant:
    hops = tuple(
        RouteHop(
            worker_id=worker_id, url=url, blocks=BlockRange(i, i + 1), precision="float32", ticket=f"ticket {i}"
        )
        for i, (worker_id, url) in enumerate(workers)
    )
    return RouteGrant(
        session_id=SESSION,
        model=ModelName("tiny"),
        revision=cluster.revision,
        hops=hops,
        attach_ticket="ticket to attach",
        expires_in_s=9.0,
    )


async def test_opens_with_the_hops_tickets_and_attaches_with_the_one_that_no_hop_gets(
    pool: ConnectionPool, cluster: ScriptedCluster
) -> None:
    async with asyncio.timeout(DEADLINE_S):
        with Attempt(pool, grant_of(cluster, cluster.workers), max_tokens=3, vocab_size=270) as attempt:
            await attempt.start([7, 8], SamplingParams(max_tokens=3), remaining_s=12.5)
            tokens = [await attempt.token() for _ in range(3)]
    seen = cluster.seen[SESSION]
    assert seen.opening is not None
    assert seen.attached is not None
    assert (seen.opening.tickets, seen.opening.deadline_s) == (("ticket 0", "ticket 1"), 12.5)
    assert seen.opening.n_prompt == 2
    assert seen.attached.ticket == "ticket to attach"
    assert seen.attached_prompt == b"\x07\0\0\0\x08\0\0\0"
    assert [(token.token_id, token.finish_reason) for token in tokens] == [(4, None), (5, None), (6, "length")]


async def test_a_tail_that_is_not_there_is_a_lost_hop_and_the_head_can_be_told(
    pool: ConnectionPool, cluster: ScriptedCluster
) -> None:
    head, (tail, _) = cluster.workers
    async with asyncio.timeout(DEADLINE_S):
        await pool.connection(*head)
        grant = grant_of(cluster, [head, (tail, "https://127.0.0.1:1")])
        with Attempt(pool, grant, max_tokens=3, vocab_size=270) as attempt:
            with pytest.raises(AttemptFailed, match=tail) as raised:
                await attempt.start([7], SamplingParams(max_tokens=3), remaining_s=5.0)
            await attempt.end("failed")
            assert attempt.heard_session == SESSION
        assert isinstance(raised.value.error, HopLostError)
        assert raised.value.failure == HopFailure(worker_id=tail, code="hop_lost")
        await cluster.until(lambda: cluster.seen[SESSION].closed == {head[0]: "failed"})


def test_a_route_without_workers_is_a_defect(pool: ConnectionPool, cluster: ScriptedCluster) -> None:
    with pytest.raises(InternalError, match="without workers"):
        Attempt(pool, grant_of(cluster, []), max_tokens=1, vocab_size=270)


async def test_a_head_that_is_not_there_has_heard_of_no_session(
    pool: ConnectionPool, cluster: ScriptedCluster
) -> None:
    (head, _), tail = cluster.workers
    grant = grant_of(cluster, [(head, "https://127.0.0.1:1"), tail])
    async with asyncio.timeout(DEADLINE_S):
        with Attempt(pool, grant, max_tokens=3, vocab_size=270) as attempt:
            with pytest.raises(AttemptFailed) as raised:
                await attempt.start([7], SamplingParams(max_tokens=3), remaining_s=5.0)
            assert attempt.heard_session is None
        assert raised.value.failure == HopFailure(worker_id=head, code="hop_lost")


STRANGER = WorkerId("w-" + "q" * 26)


@pytest.mark.parametrize(
    ("told", "places"),
    [((0, None), (0, 1)), ((STRANGER, STRANGER), (1, 1)), ((1, 0), (1, 0)), ((0, 0), (0, 0))],
    ids=["an older tail", "strangers", "the head noticed", "the head itself"],
)
async def test_who_ended_the_session_and_who_noticed(
    pool: ConnectionPool,
    cluster: ScriptedCluster,
    told: tuple[int | WorkerId, int | WorkerId | None],
    places: tuple[int, int],
) -> None:
    """The tail tells it. By places in the route, but for strangers, who can be neither."""
    blames, noticed_by = (cluster.workers[one][0] if isinstance(one, int) else one for one in told)
    gone = ErrorBody(code="hop_lost", message="gone")
    cluster.script = Script(ends_with=gone, blames=blames, noticed_by=noticed_by)
    async with asyncio.timeout(DEADLINE_S):
        grant = grant_of(cluster, cluster.workers)
        with Attempt(pool, grant, max_tokens=3, vocab_size=270) as attempt:
            await attempt.start([7], SamplingParams(max_tokens=3), remaining_s=5.0)
            with pytest.raises(AttemptFailed) as raised:
                await attempt.token()
    blamed, noticed = (cluster.workers[place][0] for place in places)
    assert raised.value.failure == HopFailure(worker_id=blamed, noticed_by=noticed, code="hop_lost")


async def test_the_last_allowed_token_ends_it_though_the_tail_says_nothing(
    pool: ConnectionPool, cluster: ScriptedCluster
) -> None:
    cluster.script = Script(answer=(4, 5), stop_short=True)
    async with asyncio.timeout(DEADLINE_S):
        with Attempt(pool, grant_of(cluster, cluster.workers), max_tokens=2, vocab_size=270) as attempt:
            await attempt.start([7], SamplingParams(max_tokens=2), remaining_s=5.0)
            assert [(await attempt.token()).finish_reason for _ in range(2)] == [None, "length"]
            assert not attempt.is_finished
