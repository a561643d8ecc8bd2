from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.ids import SessionId
from tests.support.ring import eventually, generated, running_ring
from tests.support.tiny_checkpoint import TinyCheckpoint
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
