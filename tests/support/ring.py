"""Workers' data planes on loopback with real TLS, engines and tiny models, and a client that speaks frames."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import torch
from aiohttp import web

from protocol.control_messages import GenerationReport
from protocol.frames import MAX_FRAME_BYTES, Frame, decode_frames, encode_frame
from protocol.ids import BlockRange, CoordinatorId, ModelName, Revision, SessionId, WorkerId
from protocol.messages import (
    PROTOCOL_VERSION,
    DataMessage,
)
from protocol.tickets import AttachTicket, Ticket, sign_claims
from protocol.tls import client_context, server_context, worker_name
from tests.support.pki import TestAuthority, WorkerFiles
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS
from tests.support.waiting import eventually
from worker.engine import Engine
from worker.enrolment import Credentials, CredentialsHolder
from worker.holdings import Holdings
from worker.limits import Limits
from worker.server import DataPlane
from worker.steps import LoadRequest, SpanKey

MODEL = ModelName("tiny")
REVISION = Revision("a" * 64)
CHUNK = 4
KV_BUDGET = 4 * 2**20
WAIT_S = 20.0


@dataclass
class RingWorker:
    """One worker of a test ring."""

    files: WorkerFiles
    ticket_key: bytes
    blocks: BlockRange
    engine: Engine
    holdings: Holdings
    plane: DataPlane
    url: str = ""
    reports: list[GenerationReport] = field(default_factory=list)

    @property
    def worker_id(self) -> WorkerId:
        return self.files.worker_id

    def is_clean(self) -> bool:
        stats = self.engine.stats()
        return (
            stats.n_sessions == 0
            and stats.n_waiting_sessions == 0
            and stats.n_pending_steps == 0
            and stats.kv_free_bytes == stats.kv_budget_bytes
            and self.plane.n_sessions == 0
        )


class Wire:
    """A client's connection to one worker."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self._came: deque[Frame] = deque()

    async def send(self, message: DataMessage, payload: bytes = b"") -> None:
        await self.socket.send_bytes(encode_frame(message, payload))

    async def receive(self, kind: Any = None) -> Any:
        """The next message, or the next of `kind`; fails when the connection ends or `WAIT_S` is over."""
        async with asyncio.timeout(WAIT_S):
            while True:
                frame = await self.frame()
                if kind is None or isinstance(frame.message, kind):
                    return frame.message

    async def frame(self) -> Frame:
        """The next frame; fails when the connection ends. The caller has the deadline."""
        if not self._came:
            self._came += decode_frames(await self.socket.receive_bytes())
        return self._came.popleft()

    async def closed(self) -> int | None:
        """Wait for the other side to close; the close code."""
        async with asyncio.timeout(WAIT_S):
            while not self.socket.closed:
                await self.socket.receive()
        return self.socket.close_code


@dataclass
class Ring:
    """Workers in order, and how to reach them as a client."""

    authority: TestAuthority
    workers: list[RingWorker]
    http: aiohttp.ClientSession
    wires: list[Wire] = field(default_factory=list)
    spares: list[RingWorker] = field(default_factory=list)
    """Of each range one more, in the same order, if they were asked for."""

    def with_spare(self, index: int) -> Ring:
        """The same ring with the spare of one range in its worker's place."""
        workers = [self.spares[i] if i == index else worker for i, worker in enumerate(self.workers)]
        return replace(self, workers=workers)

    async def connect(self, worker: RingWorker, as_worker: WorkerFiles | None = None, **headers: str) -> Wire:
        certificate = (as_worker.certificate, as_worker.key) if as_worker is not None else (None, None)
        socket = await self.http.ws_connect(
            worker.url + "/v1/data",
            ssl=client_context(self.authority.ca_pem, *certificate),
            server_hostname=worker_name(worker.worker_id),
            headers={"Brigade-Protocol": PROTOCOL_VERSION, **headers},
            max_msg_size=MAX_FRAME_BYTES,
            timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
        )
        self.wires.append(Wire(socket))
        return self.wires[-1]

    def ticket(self, session_id: str, index: int, *, max_positions: int = 60, **changes: Any) -> Ticket:
        workers = self.workers
        following = workers[index + 1] if index + 1 < len(workers) else None
        ticket = Ticket(
            expires_at_s=time.time() + 60,  # noqa: TID251 - the worker's clock is the real one
            worker_id=workers[index].worker_id,
            session_id=SessionId(session_id),
            model=MODEL,
            revision=REVISION,
            blocks=workers[index].blocks,
            epoch=1,
            previous=workers[index - 1].worker_id if index else None,
            next=following.worker_id if following else None,
            next_url=following.url if following else None,
            head=workers[0].worker_id,
            head_url=workers[0].url,
            tail=workers[-1].worker_id,
            max_positions=max_positions,
        )
        values = {name: getattr(ticket, name) for name in ticket.__struct_fields__}
        return Ticket(**{**values, **changes})

    def tickets(self, session_id: str, **changes: Any) -> list[str]:
        return [
            sign_claims(self.ticket(session_id, index, **changes), [worker.ticket_key])
            for index, worker in enumerate(self.workers)
        ]

    def attach_ticket(self, session_id: str, **changes: Any) -> str:
        tail = self.workers[-1]
        claims: dict[str, Any] = {
            "expires_at_s": time.time() + 60,  # noqa: TID251 - the worker's clock is the real one
            "worker_id": tail.worker_id,
            "session_id": SessionId(session_id),
            "max_positions": 60,
            **changes,
        }
        return sign_claims(AttachTicket(**claims), [tail.ticket_key])

    def is_clean(self) -> bool:
        return all(worker.is_clean() for worker in self.workers)

    async def until_clean(self) -> None:
        await eventually(self.is_clean)


@asynccontextmanager
async def running_ring(
    checkpoint: TinyCheckpoint,
    folder: Path,
    cuts: Sequence[int] = (),
    *,
    limits: Limits | None = None,
    kv_budget_bytes: int = KV_BUDGET,
    also: TinyCheckpoint | None = None,
    has_spares: bool = False,
    chunk_tokens: int | None = CHUNK,
) -> AsyncIterator[Ring]:
    """Workers that hold the model, cut at `cuts`; each holds its range of `also` too, as model `other`."""
    authority = TestAuthority()
    async with AsyncExitStack() as stack:
        workers = []
        ranges = [BlockRange(start, end) for start, end in pairwise((0, *cuts, N_BLOCKS))]
        for blocks in ranges * (2 if has_spares else 1):
            worker = await _worker(stack, authority, folder, blocks, limits, kv_budget_bytes, chunk_tokens)
            await _load(worker, checkpoint, MODEL, REVISION)
            if also is not None:
                await _load(worker, also, OTHER_MODEL, OTHER_REVISION)
            workers.append(worker)
        # entered last, so closed first: workers needn't wait for its half of closing handshakes
        http = await stack.enter_async_context(aiohttp.ClientSession())
        ring = Ring(authority, workers[: len(ranges)], http, spares=workers[len(ranges) :])
        yield ring
        for wire in ring.wires:
            await wire.socket.close()


OTHER_MODEL = ModelName("other")
OTHER_REVISION = Revision("b" * 64)


async def _load(worker: RingWorker, checkpoint: TinyCheckpoint, model: ModelName, revision: Revision) -> None:
    key = SpanKey(revision=revision, blocks=worker.blocks, precision="float32")
    request: LoadRequest = replace(checkpoint.request(worker.blocks), key=key)
    worker.holdings.add(model, await worker.engine.load(request))


async def _worker(
    stack: AsyncExitStack,
    authority: TestAuthority,
    folder: Path,
    blocks: BlockRange,
    limits: Limits | None,
    kv_budget_bytes: int,
    chunk_tokens: int | None,
) -> RingWorker:
    files = authority.worker(folder)
    ticket_key = secrets.token_bytes(32)
    credentials = Credentials(
        coordinator_url="https://127.0.0.1:1",
        coordinator_id=CoordinatorId("c-test"),
        certificate=files.certificate,
        key=files.key,
        ca_pem=authority.ca_pem,
        session_token="none",
        ticket_key=ticket_key,
        renew_at_s=0.0,
        expires_at_s=0.0,
    )
    engine = await stack.enter_async_context(
        Engine(device=torch.device("cpu"), kv_budget_bytes=kv_budget_bytes, n_threads=1)
    )
    holdings = Holdings()
    reports: list[GenerationReport] = []
    plane = DataPlane(
        engine,
        holdings,
        CredentialsHolder(credentials),
        files.worker_id,
        chunk_tokens,
        reports.append,
        time.time,  # noqa: TID251 - the tickets of these tests are real too
        limits or Limits(),
    )
    app = web.Application()
    plane.add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(
        runner, "127.0.0.1", 0, ssl_context=server_context(files.certificate, files.key, authority.ca_pem)
    )
    await site.start()
    await stack.enter_async_context(plane)
    port = runner.addresses[0][1]
    return RingWorker(files, ticket_key, blocks, engine, holdings, plane, f"https://127.0.0.1:{port}", reports)
