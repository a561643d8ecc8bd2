"""Somebody with a worker's certificate who says whatever the test wants: as a later hop, or as an earlier one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from protocol.frames import Frame, decode_frames, encode_frame
from protocol.ids import SessionId
from protocol.messages import DataMessage, OpenSession
from protocol.tickets import sign_claims
from protocol.tls import server_context
from tests.support.pki import TestAuthority, WorkerFiles
from tests.support.ring import WAIT_S, Ring, RingWorker, Wire


@dataclass
class FakeWorker:
    """Listens as a worker would; `frames` are what came."""

    files: WorkerFiles
    url: str = ""
    frames: asyncio.Queue[Frame] = field(default_factory=asyncio.Queue)
    sockets: list[web.WebSocketResponse] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0, timeout=1.0)
        await socket.prepare(request)
        self.sockets.append(socket)
        async for message in socket:
            for frame in decode_frames(message.data):
                self.frames.put_nowait(frame)
        return socket

    async def say(self, message: DataMessage, payload: bytes = b"") -> None:
        await self.sockets[-1].send_bytes(encode_frame(message, payload))

    async def next_of(self, kind: Any) -> Frame:
        async with asyncio.timeout(WAIT_S):
            while not isinstance((frame := await self.frames.get()).message, kind):
                pass
            return frame

    async def cut(self) -> None:
        """End the last connection in the middle of a WebSocket frame, as a dying machine does."""
        transport = self.sockets[-1]._req.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.write(b"\x82\x7e\x10\x00only the beginning")
        transport.abort() if secrets.randbelow(2) else transport.close()


@asynccontextmanager
async def fake_worker(authority: TestAuthority, folder: Path) -> AsyncIterator[FakeWorker]:
    fake = FakeWorker(authority.worker(folder))
    app = web.Application()
    app.router.add_get("/v1/data", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = server_context(fake.files.certificate, fake.files.key, authority.ca_pem)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    fake.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


async def opened_by(ring: Ring, fake: WorkerFiles, worker: RingWorker, session_id: str, **changes: Any) -> Wire:
    """A session on `worker` that `fake` opens as the hop before it."""
    index = ring.workers.index(worker)
    ticket = ring.ticket(session_id, index, previous=fake.worker_id, **changes)
    wire = await ring.connect(worker, as_worker=fake)
    text = sign_claims(ticket, [worker.ticket_key])
    await wire.send(OpenSession(session_id=SessionId(session_id), tickets=(text,), deadline_s=30.0))
    return wire
