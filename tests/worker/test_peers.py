from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import worker.peers
import worker.server
from benchmarks.relay import Relay
from protocol.errors import HopLostError
from protocol.ids import SessionId
from protocol.messages import PROTOCOL_VERSION, SessionEnded, Token
from tests.support.ring import running_ring
from tests.support.ring_generation import Generation, generated
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually
from worker.limits import Limits
from worker.peers import Peers

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30]


def peers_of(plane: object) -> Peers:
    peers: Peers = plane._peers  # type: ignore[attr-defined]
    return peers


async def test_connections_are_shared_by_sessions_and_kept(checkpoint: Checkpoints, tmp_path: Path) -> None:
    llama = checkpoint("llama")
    async with running_ring(llama, tmp_path, (1, 3)) as ring:
        await generated(ring, PROMPT, 4)
        first = await peers_of(ring.workers[0].plane).connection(ring.workers[1].worker_id, ring.workers[1].url)
        await generated(ring, PROMPT, 4)
        again = await peers_of(ring.workers[0].plane).connection(ring.workers[1].worker_id, ring.workers[1].url)
        assert again is first
        assert [peers_of(worker.plane).n_connections for worker in ring.workers] == [1, 1, 1]


async def test_idle_connections_are_closed_and_opened_again(checkpoint: Checkpoints, tmp_path: Path) -> None:
    llama = checkpoint("llama")
    limits = Limits(idle_peer_s=0.05, sweep_s=0.02)
    async with running_ring(llama, tmp_path, (2,), limits=limits) as ring:
        for _ in range(2):
            assert await generated(ring, PROMPT, 4) == llama.greedy(PROMPT, 4)
            await eventually(lambda: not any(peers_of(worker.plane).n_connections for worker in ring.workers))


async def test_a_lost_connection_is_made_again_for_the_next(checkpoint: Checkpoints, tmp_path: Path) -> None:
    llama = checkpoint("llama")
    async with running_ring(llama, tmp_path, (2,)) as ring:
        await generated(ring, PROMPT, 4)
        first, second = ring.workers
        (await peers_of(first.plane).connection(second.worker_id, second.url)).abort()
        await eventually(lambda: peers_of(first.plane).n_connections == 0)
        assert await generated(ring, PROMPT, 4) == llama.greedy(PROMPT, 4)


async def test_renewed_credentials_are_used_for_new_connections(checkpoint: Checkpoints, tmp_path: Path) -> None:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        first = peers_of(ring.workers[0].plane)
        before = await first._tls()
        assert await first._tls() is before
        first._credentials.replace(replace(first._credentials.current, session_token="new"))
        assert await first._tls() is not before


@pytest.mark.parametrize("times", [1, 2])
async def test_removing_a_user_twice_does_no_harm(checkpoint: Checkpoints, tmp_path: Path, times: int) -> None:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        first, second = ring.workers
        connection = await peers_of(first.plane).connection(second.worker_id, second.url)
        for _ in range(times):
            connection.remove_user(SessionId("none"))
        assert not connection.users


class Silent:
    """Takes TCP connections and says nothing."""

    def __init__(self) -> None:
        self.url = ""
        self.writers: list[asyncio.StreamWriter] = []

    async def handle(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)


@asynccontextmanager
async def silent() -> AsyncIterator[Silent]:
    peer = Silent()
    server = await asyncio.start_server(peer.handle, "127.0.0.1", 0)
    peer.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        server.close()
        for writer in peer.writers:
            writer.transport.abort()


async def test_many_sessions_wait_for_one_dialling_and_nothing_of_it_stays(
    checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.peers, "DIAL_S", 0.5)
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring, silent() as dead:
        first, second = ring.workers
        peers = peers_of(first.plane)
        dials = (peers.connection(second.worker_id, dead.url) for _ in range(20))
        async with asyncio.timeout(5):
            results = await asyncio.gather(*dials, return_exceptions=True)
        assert all(isinstance(result, HopLostError) for result in results)
        assert len(dead.writers) == 1
        assert peers._slots == {}
        monkeypatch.undo()  # who answers has all the time that it needs
        assert (await peers.connection(second.worker_id, second.url)).peer == second.worker_id


async def test_at_the_same_time_one_connection_is_made(checkpoint: Checkpoints, tmp_path: Path) -> None:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        first, second = ring.workers
        peers = peers_of(first.plane)
        found = await asyncio.gather(*(peers.connection(second.worker_id, second.url) for _ in range(8)))
        assert len(set(found)) == 1
        found[0].abort()
        again = await asyncio.gather(*(peers.connection(second.worker_id, second.url) for _ in range(8)))
        await eventually(lambda: peers.n_connections == 1)
        assert len(set(again) - {found[0]}) <= 1
        assert len(peers._slots) == 1


async def test_a_dialling_that_is_cancelled_leaves_the_next_its_turn(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring, silent() as dead:
        first, second = ring.workers
        peers = peers_of(first.plane)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await peers.connection(second.worker_id, dead.url)
        assert peers._slots == {}
        assert not (await peers.connection(second.worker_id, second.url)).is_closed


@pytest.mark.parametrize("scheme", ["http", "ws", "file"])
async def test_nothing_goes_unencrypted_whatever_a_ticket_says(
    checkpoint: Checkpoints, tmp_path: Path, scheme: str
) -> None:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring, silent() as open_port:
        first, second = ring.workers
        url = open_port.url.replace("https", scheme)
        with pytest.raises(HopLostError, match="https"):
            await peers_of(first.plane).connection(second.worker_id, url)
        assert not open_port.writers


async def test_after_the_close_no_connection_is_made(checkpoint: Checkpoints, tmp_path: Path) -> None:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        first, second = ring.workers
        peers = peers_of(first.plane)
        await peers.close()
        with pytest.raises(HopLostError, match="stopping"):
            await peers.connection(second.worker_id, second.url)


async def test_links_to_the_peers_that_are_connected_and_the_time_of_a_hop_are_told(
    checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_ring(checkpoint("llama"), tmp_path, (1, 3), limits=Limits(sweep_s=0.02)) as ring:
        assert ring.workers[0].plane.round_trips_s == {}
        await generated(ring, PROMPT, 4)
        for index, worker_ in enumerate(ring.workers):
            following = ring.workers[(index + 1) % 3].worker_id
            await eventually(lambda it=worker_, peer=following: set(it.plane.round_trips_s) == {peer})  # type: ignore[misc]
            assert all(0 < seconds < 10 for seconds in worker_.plane.round_trips_s.values())
            assert worker_.plane.links[following].n_bytes_sent > 0
            middle_s, most_s = worker_.plane.hop_quantiles_s(0.5, 0.99)
            assert 0 < middle_s <= most_s
        monkeypatch.setattr(worker.peers, "MAX_ROUND_TRIPS", 0)
        assert ring.workers[0].plane.round_trips_s == {}


async def test_a_neighbour_that_falls_silent_is_noticed_and_named_on_both_sides(
    checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (worker.peers, worker.server):
        monkeypatch.setattr(module, "PING_S", 0.5)
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        head, tail = ring.workers
        async with Relay("127.0.0.1", int(tail.url.rsplit(":", 1)[1])) as relay:
            next_url = f"https://127.0.0.1:{relay.port}"
            generation = await Generation.prepared(ring, PROMPT, 50, next_url=next_url)
            await generation.begin()
            await generation.tail.receive(Token)
            relay.hold()
            async with asyncio.TaskGroup() as tasks:  # both at once: pings are answered by who reads
                from_head = tasks.create_task(generation.head.receive(SessionEnded))
                from_tail = tasks.create_task(generation.tail.receive(SessionEnded))
            for ended, silent in ((from_head.result(), tail), (from_tail.result(), head)):
                assert (ended.worker_id, ended.error.code) == (silent.worker_id, "hop_lost")
            await ring.until_clean()
            assert head.engine._kept.lot.parked
            assert tail.engine._kept.lot.parked


async def test_each_end_of_a_connection_knows_the_others_version(checkpoint: Checkpoints, tmp_path: Path) -> None:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        await generated(ring, PROMPT, 4)
        for worker_ in ring.workers:
            (outgoing,) = peers_of(worker_.plane)._open
            assert outgoing.version == PROTOCOL_VERSION
        old = await ring.connect(ring.workers[0], **{"Brigade-Protocol": "1.0"})
        await eventually(lambda: any(one.version == "1.0" for one in ring.workers[0].plane._incoming))
        await old.socket.close()
