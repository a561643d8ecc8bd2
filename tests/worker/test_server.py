from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.errors import DrainingError
from protocol.frames import encode_frame
from protocol.ids import CoordinatorId, SessionId, WorkerId
from protocol.messages import CloseSession, SessionEnded, SessionOpened, Token
from protocol.tls import client_context, worker_name
from tests.support.open_files import is_cut, nothing_left_open
from tests.support.pki import TestAuthority
from tests.support.ring import Ring, running_ring
from tests.support.ring_generation import Generation, generated
from tests.support.socket_pair import connected
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually
from worker.engine import Engine
from worker.enrolment import Credentials, CredentialsHolder
from worker.holdings import Holdings
from worker.limits import Limits
from worker.server import MAX_CLIENT_FRAME_BYTES, DataPlane

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30]


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


async def plain_get(ring: Ring, headers: dict[str, str]) -> tuple[int, str]:
    worker = ring.workers[0]
    async with ring.http.get(
        worker.url + "/v1/data",
        ssl=client_context(ring.authority.ca_pem),
        server_hostname=worker_name(worker.worker_id),
        headers=headers,
    ) as response:
        return response.status, (await response.json())["error"]["code"]


@pytest.mark.parametrize("headers", [{}, {"Brigade-Protocol": "2.0"}, {"Brigade-Protocol": "x" * 500}])
async def test_other_versions_are_refused_before_anything_else(
    llama: TinyCheckpoint, tmp_path: Path, headers: dict[str, str]
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        assert await plain_get(ring, headers) == (426, "protocol_version")


async def test_a_certificate_of_the_cluster_that_is_no_workers_is_refused(
    llama: TinyCheckpoint, tmp_path: Path
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        key = ec.generate_private_key(ec.SECP256R1())
        files = ring.authority.issue(tmp_path, key, WorkerId("w-odd"), "coordinator.brigade.internal")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await ring.connect(ring.workers[0], as_worker=files)
        assert refused.value.status == 401


async def test_clients_cant_crowd_out_workers(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, limits=Limits(client_connections=2)) as ring:
        worker = ring.workers[0]
        wires = [await ring.connect(worker) for _ in range(2)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await ring.connect(worker)
        assert refused.value.status == 503
        as_worker = await ring.connect(worker, as_worker=ring.authority.worker(tmp_path))
        await wires[0].socket.close()
        await eventually(lambda: len(worker.plane._incoming) == 2)
        again = await ring.connect(worker)
        assert not again.socket.closed
        assert not as_worker.socket.closed


async def test_one_worker_cant_crowd_out_the_others(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, limits=Limits(connections_per_worker=2)) as ring:
        worker, greedy = ring.workers[0], ring.authority.worker(tmp_path)
        for _ in range(2):
            await ring.connect(worker, as_worker=greedy)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await ring.connect(worker, as_worker=greedy)
        assert refused.value.status == 503
        other = await ring.connect(worker, as_worker=ring.authority.worker(tmp_path))
        assert not other.socket.closed


async def test_a_connection_that_says_nothing_is_closed(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, limits=Limits(first_message_s=0.05)) as ring:
        wire = await ring.connect(ring.workers[0])
        assert await wire.closed() == aiohttp.WSCloseCode.OK


async def test_a_client_without_sessions_is_closed_in_the_end(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, limits=Limits(idle_client_s=0.1, sweep_s=0.02)) as ring:
        wire = await ring.connect(ring.workers[0])
        await wire.send(CloseSession(session_id=SessionId("none"), reason="cancelled"))
        await wire.closed()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"BG\x01\x00" + b"\xff" * 12,
        encode_frame(CloseSession(session_id=SessionId("s"), reason="lost"))[:-1],
        encode_frame(CloseSession(session_id=SessionId("s"), reason="lost")) + b"x",
        encode_frame(SessionOpened(session_id=SessionId("s"))),
    ],
)
async def test_bad_frames_close_their_connection_and_end_its_sessions(
    llama: TinyCheckpoint, tmp_path: Path, data: bytes
) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT)
        await generation.open()
        await generation.head.receive(SessionOpened)
        await generation.head.socket.send_bytes(data)
        assert await generation.head.closed() == aiohttp.WSCloseCode.PROTOCOL_ERROR
        await ring.until_clean()
        assert await generated(ring, PROMPT, 3) == llama.greedy(PROMPT, 3)


async def test_text_is_no_frame(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        wire = await ring.connect(ring.workers[0])
        await wire.socket.send_str("hello")
        assert await wire.closed() == aiohttp.WSCloseCode.PROTOCOL_ERROR


async def test_clients_may_not_send_what_only_workers_need(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        wire = await ring.connect(ring.workers[0])
        await wire.socket.send_bytes(bytes(MAX_CLIENT_FRAME_BYTES + 1))
        # it may be closed while we still write: then there is no code to read
        assert await wire.closed() in (aiohttp.WSCloseCode.MESSAGE_TOO_BIG, aiohttp.WSCloseCode.ABNORMAL_CLOSURE)


async def test_before_it_runs_it_says_that_it_isnt_ready(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        plane = ring.workers[0].plane
        sessions, plane._sessions = plane._sessions, None
        assert plane.n_sessions == 0
        assert await plain_get(ring, {"Brigade-Protocol": "1.0"}) == (503, "draining")
        plane._sessions = sessions


async def test_the_applications_shutdown_doesnt_wait_for_open_connections(
    llama: TinyCheckpoint, tmp_path: Path
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await Generation.prepared(ring, PROMPT, 50)
        await generation.begin()
        await generation.head.receive(SessionOpened)
        await ring.workers[0].plane._stop_serving(None)
        assert (await generation.head.receive(SessionEnded)).error.code == "draining"
        await generation.head.closed()
        await ring.until_clean()


async def test_stopping_ends_running_sessions_and_frees_them(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await Generation.prepared(ring, PROMPT, 50)
        await generation.begin()
        await generation.head.receive(SessionOpened)
        worker = ring.workers[0]
        worker.plane._sessions.stop_all(DrainingError("stop"))  # type: ignore[union-attr]
        await ring.until_clean()


async def test_a_drain_cut_short_tells_everybody_before_it_closes(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 50)
        await generation.begin()
        await generation.tail.receive(Token)
        leaving = ring.workers[1]
        await leaving.plane.drain(0.0)
        await leaving.plane._stop_serving()
        for wire, code in ((generation.tail, "draining"), (generation.head, "draining")):
            ended = await wire.receive(SessionEnded)
            assert (ended.worker_id, ended.error.code) == (leaving.worker_id, code)
        await generation.tail.closed()
        await ring.until_clean()
        assert [report.outcome for report in leaving.reports] == ["failed"]


async def test_only_the_head_says_that_a_client_has_opened_a_session(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT)
        await generation.open()
        await generation.head.receive(SessionOpened)
        head, tail = (worker.plane for worker in ring.workers)
        assert (head.sessions_begun, tail.sessions_begun) == ({generation.session_id}, frozenset())
        assert tail.n_sessions == 1


async def test_an_end_that_is_cancelled_anywhere_leaves_nothing_open(tmp_path: Path) -> None:
    files = TestAuthority().worker(tmp_path)
    credentials = Credentials(
        coordinator_url="https://127.0.0.1:1",
        coordinator_id=CoordinatorId("c-test"),
        certificate=files.certificate,
        key=files.key,
        ca_pem="",
        session_token="none",
        ticket_key=bytes(32),
        renew_at_s=0.0,
        expires_at_s=0.0,
    )
    engine = Engine(device=torch.device("cpu"), kv_budget_bytes=1, n_threads=1)

    async def begun_and_ended() -> None:
        holder, clock = CredentialsHolder(credentials), time.time  # noqa: TID251 - no ticket is looked at
        async with DataPlane(engine, Holdings(), holder, files.worker_id, None, lambda _report: None, clock) as it:
            it._incoming.add(connection)
            try:
                await asyncio.Event().wait()
            finally:
                connection.post(CloseSession(session_id=SessionId("s"), reason="lost"))  # which is waited for

    with nothing_left_open():
        async with connected() as (_, _, connection):
            tasks = asyncio.all_tasks()
            assert await is_cut(begun_and_ended(), 2, n_times=3)
            assert asyncio.all_tasks() <= tasks
