from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from client.transport import ConnectionLost, ConnectionPool, Inbox, connection_pool
from protocol.errors import (
    BrigadeError,
    DrainingError,
    HopLostError,
    ProtocolError,
    ProtocolVersionError,
    UnauthenticatedError,
)
from protocol.http_connector import MAX_CUTS
from protocol.ids import SessionId, WorkerId
from protocol.messages import CloseSession, OpenSession, SessionOpened, Token
from tests.support.pki import TestAuthority
from tests.support.scripted_cluster import ScriptedCluster, SeenSession, scripted_cluster
from tests.support.waiting import eventually

SESSION = SessionId("s-1")
WORKER = WorkerId("w-" + "a" * 26)
DEADLINE_S = 20.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with scripted_cluster(tmp_path, n_workers=1) as running:
        running.seen[SESSION] = SeenSession()
        yield running


@pytest.fixture
async def pool(cluster: ScriptedCluster) -> AsyncIterator[ConnectionPool]:
    async with connection_pool(cluster.authority.ca_pem) as opened:
        yield opened


async def test_two_that_dial_at_once_get_one_connection(pool: ConnectionPool, cluster: ScriptedCluster) -> None:
    first, second = await asyncio.gather(*(pool.connection(*cluster.workers[0]) for _ in range(2)))
    assert first is second
    assert cluster.n_worker_connections == 1


async def test_all_who_wait_for_a_dialling_hear_of_its_failure_and_later_ones_dial_anew(
    pool: ConnectionPool, cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that takes connections and cuts them takes seconds to give up: not one after the other for each."""
    monkeypatch.setattr("protocol.http_connector._LONGEST_DELAY_S", 0.0)
    n_dialled = 0

    async def cut(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n_dialled
        n_dialled += 1
        writer.close()

    worker_id, _ = cluster.workers[0]
    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        dials = [pool.connection(worker_id, url) for _ in range(8)]
        ends = await asyncio.gather(*dials, return_exceptions=True)
        assert all(isinstance(end, HopLostError) and "before TLS was agreed on" in end.message for end in ends)
        assert n_dialled == MAX_CUTS
        with pytest.raises(HopLostError):
            await pool.connection(worker_id, url)
        assert n_dialled == 2 * MAX_CUTS


async def test_answers_go_to_the_inbox_of_their_session(pool: ConnectionPool, cluster: ScriptedCluster) -> None:
    connection = await pool.connection(*cluster.workers[0])
    inbox, other = Inbox(SESSION, max_tokens=1), Inbox(SessionId("s-2"), max_tokens=1)
    with connection.delivering_to(inbox), connection.delivering_to(other):
        await connection.send(OpenSession(session_id=SESSION, tickets=("t",), deadline_s=1.0))
        async with asyncio.timeout(DEADLINE_S):
            assert await inbox.get() == (connection.worker_id, SessionOpened(session_id=SESSION))
    assert other._queue.empty()


async def test_whoever_waits_learns_that_the_connection_is_lost(
    pool: ConnectionPool, cluster: ScriptedCluster
) -> None:
    connection = await pool.connection(*cluster.workers[0])
    inbox = Inbox(SESSION, max_tokens=1)
    with connection.delivering_to(inbox):
        await connection.close()
        async with asyncio.timeout(DEADLINE_S):
            _, happening = await inbox.get()
    assert isinstance(happening, ConnectionLost)
    assert not connection.is_usable
    with pytest.raises(HopLostError):
        await connection.send(CloseSession(session_id=SESSION, reason="cancelled"))
    late = Inbox(SESSION, max_tokens=1)
    with connection.delivering_to(late):
        assert isinstance((await late.get())[1], ConnectionLost)
    assert await pool.connection(*cluster.workers[0]) is not connection


async def test_how_far_a_worker_is_is_known_once_it_is_connected_to(
    pool: ConnectionPool, cluster: ScriptedCluster
) -> None:
    assert pool.legs() == ()
    connection = await pool.connection(*cluster.workers[0])
    (leg,) = await eventually(pool.legs)
    assert (leg.worker_id, leg.is_connected) == (connection.worker_id, True)
    assert 0.0 < leg.round_trip_s < DEADLINE_S
    assert not pool.legs(takes_states=True)[0].is_connected, "private sessions have connections of their own"
    await connection.close()
    (leg,) = pool.legs()
    assert not leg.is_connected


async def test_connections_that_ended_are_not_kept(pool: ConnectionPool, cluster: ScriptedCluster) -> None:
    """A worker that comes back has another port, so nobody would ever ask for this one again."""
    await (await pool.connection(*cluster.workers[0])).close()
    async with asyncio.timeout(DEADLINE_S):
        while pool._connections:  # noqa: ASYNC110 - its reader ends soon after, and has no event
            await asyncio.sleep(0.005)


async def test_nobody_there_is_a_lost_hop_with_its_address(pool: ConnectionPool) -> None:
    with pytest.raises(HopLostError, match=r"https://127\.0\.0\.1:1 can't be reached"):
        await pool.connection(WORKER, "https://127.0.0.1:1")


async def test_a_worker_is_never_dialled_without_tls(pool: ConnectionPool) -> None:
    with pytest.raises(ProtocolError, match="not https"):
        await pool.connection(WORKER, "http://127.0.0.1:1")


async def test_another_workers_certificate_is_refused(pool: ConnectionPool, cluster: ScriptedCluster) -> None:
    with pytest.raises(UnauthenticatedError, match=WORKER):
        await pool.connection(WORKER, cluster.workers[0][1])


async def test_another_clusters_certificate_is_refused(cluster: ScriptedCluster, tmp_path: Path) -> None:
    async with connection_pool(TestAuthority().ca_pem) as pool:
        with pytest.raises(UnauthenticatedError):
            await pool.connection(*cluster.workers[0])


async def test_what_answers_but_is_no_worker_is_a_lost_hop(pool: ConnectionPool, cluster: ScriptedCluster) -> None:
    worker_id, url = cluster.workers[0]
    with pytest.raises(HopLostError, match="404"):
        await pool.connection(worker_id, f"{url}/elsewhere")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(426, ProtocolVersionError), (503, DrainingError), (500, HopLostError), (200, HopLostError)],
)
async def test_a_refused_connection_is_the_error_of_its_status(
    pool: ConnectionPool, cluster: ScriptedCluster, status: int, kind: type[BrigadeError]
) -> None:
    cluster.script.handshake_status = status
    with pytest.raises(kind, match=cluster.workers[0][0]):
        await pool.connection(*cluster.workers[0])
    cluster.script.handshake_status = None
    assert (await pool.connection(*cluster.workers[0])).is_usable


async def test_an_inbox_holds_what_was_asked_for_and_no_more() -> None:
    inbox = Inbox(SESSION, max_tokens=3)
    for index in range(1000):
        inbox.put(WORKER, Token(session_id=SESSION, index=index, token_id=1))
    happenings = [await inbox.get() for _ in range(inbox._queue.qsize())]
    assert len(happenings) == 11
    last = happenings[-1][1]
    assert isinstance(last, ConnectionLost)
    assert isinstance(last.error, ProtocolError)
