"""A worker that joins a real coordinator for real and then does as a test says.

async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
    await worker.hold(await worker.receive(Assign))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from protocol.codec import decode_message, encode_message
from protocol.compatibility import VERSION_HEADER
from protocol.control_messages import (
    Announce,
    Assign,
    CoordinatorToWorker,
    DeviceReport,
    Heartbeat,
    SpanReport,
    SpanStatus,
)
from protocol.ids import WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.running_beside import running_beside
from protocol.tls import COORDINATOR_NAME
from protocol.worker_rest import JoinGrant
from tests.support.coordinators import Http, RunningCoordinator, http_session
from tests.support.joining import WorkerKey, enrolled
from tests.support.waiting import DEADLINE_S

M = TypeVar("M")


def announcement(url: str = "https://127.0.0.1:7999", **changes: Any) -> Announce:
    """What a worker says first."""
    device = DeviceReport(
        device="cpu",
        precision="float32",
        n_threads=1,
        memory_bytes=10**9,
        bandwidth_bytes_per_s=1e10,
        flops_per_s=1e11,
    )
    fields = {
        "url": url,
        "hostname": "scripted",
        "version": "0",
        "device": device,
        "epoch": 0,
        "spans": (),
        "files": (),
    }
    return Announce(**(fields | changes))


@dataclass(slots=True, kw_only=True)
class ScriptedWorker:
    """A worker that says and does only what a test has it say and do, but for answering the coordinator's pings."""

    key: WorkerKey
    grant: JoinGrant
    socket: aiohttp.ClientWebSocketResponse
    http: Http
    url: str
    frames: asyncio.Queue[aiohttp.WSMessage] = field(default_factory=asyncio.Queue)
    """What came on the control socket and no test has taken yet."""

    @property
    def worker_id(self) -> WorkerId:
        """Its id."""
        return self.key.worker_id

    async def send(self, message: Any) -> None:
        """Say something on the control socket; bytes go as they are."""
        await self.socket.send_bytes(message if isinstance(message, bytes) else encode_message(message))

    async def receive(self, kind: type[M]) -> M:
        """The next message of a kind; others are passed over. Fails if the socket ends before."""
        async with asyncio.timeout(DEADLINE_S):
            while (message := await self.next()) is not None:
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"the socket ended with code {self.socket.close_code}")

    async def next(self) -> CoordinatorToWorker | None:
        """The next message, however long it takes; None once the socket has ended."""
        frame = await self.frames.get()
        if frame.type is aiohttp.WSMsgType.BINARY:
            return decode_message(frame.data, CoordinatorToWorker)
        self.frames.put_nowait(frame)  # for whoever asks again
        return None

    async def closed(self) -> int | None:
        """Wait for the end of the socket; returns its close code."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.next() is not None:
                pass
        return self.socket.close_code

    async def listen(self) -> None:
        """Take what comes until the socket ends; who doesn't is taken for dead, since nobody answers the pings."""
        while (frame := await self.socket.receive()).type is aiohttp.WSMsgType.BINARY:
            self.frames.put_nowait(frame)
        self.frames.put_nowait(frame)

    async def hold(self, assign: Assign, state: str = "ready") -> None:
        """Say that everything assigned is in a state, and that one is alive."""
        spans = tuple(
            SpanStatus(model=s.model, revision=s.revision, blocks=s.blocks, state=state, reason="")  # type: ignore[arg-type]
            for s in assign.spans
        )
        await self.send(SpanReport(epoch=assign.epoch, spans=spans))
        await self.beat()

    async def beat(self) -> None:
        """A heartbeat of an idle worker."""
        await self.send(
            Heartbeat(
                n_sessions=0,
                n_queued=0,
                free_kv_bytes=10**8,
                decode_s_per_block=0.0,
                prefill_s_per_token_block=0.0,
            )
        )


@asynccontextmanager
async def joined_worker(
    coordinator: RunningCoordinator,
    *,
    key: WorkerKey | None = None,
    announce: Announce | None = None,
    port: int = 7999,
) -> AsyncIterator[ScriptedWorker]:
    """Join, open a control socket and announce; the socket is closed with the context.

    `announce` replaces the usual announcement; `port` is the one that the usual one advertises.
    """
    key = key if key is not None else WorkerKey()
    grant = await enrolled(coordinator, key)
    async with connected_worker(coordinator, key, grant, announce=announce, port=port) as worker:
        yield worker


@asynccontextmanager
async def connected_worker(
    coordinator: RunningCoordinator,
    key: WorkerKey,
    grant: JoinGrant,
    *,
    announce: Announce | None = None,
    port: int = 7999,
    version: str = PROTOCOL_VERSION,
) -> AsyncIterator[ScriptedWorker]:
    """`joined_worker`, of a worker that has its credentials and speaks this version of the protocol."""
    async with (
        http_session(coordinator, grant.session_token) as http,
        http.session.ws_connect(
            f"{http.url}/v1/worker/control",
            server_hostname=COORDINATOR_NAME,
            headers={VERSION_HEADER: version},
        ) as socket,
    ):
        url = f"https://127.0.0.1:{port}"
        worker = ScriptedWorker(key=key, grant=grant, socket=socket, http=http, url=url)
        async with running_beside(listening=worker.listen()):
            await worker.send(announce if announce is not None else announcement(url))
            yield worker
